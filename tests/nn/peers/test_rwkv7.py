"""RWKV-7's recurrence against flash-linear-attention's definition, and where its vectors start."""

from __future__ import annotations

import math

import pytest
import torch
from textbook import random_tokens

from echo_ska.nn.peers import RWKV7


def mixer_of(**settings):
    torch.manual_seed(0)
    return RWKV7(32, num_heads=2, rank=8, head_dim=6, **settings).double()


def test_it_is_flas():
    naive = pytest.importorskip("fla.ops.generalized_delta_rule.dplr.naive", exc_type=ImportError)
    tokens, memory = random_tokens(RWKV7, hard=True), torch.randn(2, 2, 6, 8, dtype=torch.float64)
    found, final = mixer_of().scan(memory, *tokens)
    query, key, value, removed, rate, log_decay = (tensor.transpose(1, 2).float() for tensor in tokens)
    expected, last = naive.dplr_recurrence(
        query * 8**0.5, key, value, -removed, rate * removed, log_decay, initial_state=memory.mT.float()
    )
    assert torch.allclose(found.transpose(1, 2).float(), expected, atol=1e-5)
    assert torch.allclose(final.mT.float(), last, atol=1e-5)


def test_the_decays_start_at_spans_from_9_to_1000_tokens_and_are_bounded():
    mixer = mixer_of()
    query = torch.ones(1, 3, 2, 8, dtype=torch.float64)
    hidden = torch.randn(1, 3, 32, dtype=torch.float64)
    spans = -1 / mixer.tokens(hidden, query, query, query, None)[5]
    assert torch.allclose(spans[..., 0], torch.tensor(9.0, dtype=torch.float64))
    assert torch.allclose(spans[..., -1], torch.tensor(1000.0, dtype=torch.float64))
    with torch.no_grad():
        mixer.decay.up.bias.fill_(1e3)
    assert mixer.tokens(hidden, query, query, query, None)[5].min() >= -math.exp(-0.5)


def test_longer_chunks_are_refused():
    with pytest.raises(ValueError, match="chunk_size must be at most 32"):
        mixer_of(chunk_size=33)
