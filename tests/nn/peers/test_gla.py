"""Gated linear attention against flash-linear-attention's definition, and how its decays start."""

from __future__ import annotations

import pytest
import torch
from textbook import random_tokens

from echo_ska.nn.peers import GatedLinearAttention


def mixer_of(**settings):
    torch.manual_seed(0)
    return GatedLinearAttention(32, num_heads=2, rank=8, head_dim=6, **settings).double()


def test_it_is_flas():
    naive = pytest.importorskip("fla.ops.gla.naive", exc_type=ImportError)
    tokens, memory = random_tokens(GatedLinearAttention, hard=True), torch.randn(2, 2, 6, 8, dtype=torch.float64)
    found, final = mixer_of().scan(memory, *tokens)
    query, key, value, log_decay = tokens
    expected, last = naive.naive_recurrent_gla(
        query * 8**0.5, key, value, log_decay, initial_state=memory.mT, output_final_state=True
    )
    assert torch.allclose(found.float(), expected.float(), atol=1e-5)
    assert torch.allclose(final.mT.float(), last.float(), atol=1e-5)


def decays(mixer, hidden):
    query = torch.ones(*hidden.shape[:-1], 2, 8, dtype=torch.float64)
    return mixer.tokens(hidden, query, query, query, None)[3]


def test_channels_start_with_the_memory_spans_they_are_given():
    spans = -1 / decays(mixer_of(memory_spans=(5.0, 640.0)), torch.randn(1, 3, 32, dtype=torch.float64))
    expected = 5.0 * 2.0 ** torch.arange(8, dtype=torch.float64)
    assert torch.allclose(spans, expected.expand(1, 3, 2, 8), rtol=1e-4)


def test_the_published_start_forgets_within_some_23_tokens():
    spans = -1 / decays(mixer_of(memory_spans=None), torch.randn(4, 50, 32, dtype=torch.float64))
    assert 15 < spans.median() < 35


def test_the_strongest_decay_at_all_tokens_is_exact_in_float32():
    """The chunk form's largest exponents: decays of exp(-5) side by side with none."""
    mixer, (query, key, value, _) = mixer_of(), random_tokens(GatedLinearAttention, length=64)
    log_decay = torch.full_like(key, -5.0)
    log_decay[..., ::2] = 0
    memory = torch.zeros(2, 2, 6, 8, dtype=torch.float64)
    leaves = [x.float().requires_grad_() for x in (query, key, value, log_decay)]
    found, _ = mixer.scan(memory.float(), *leaves)
    expected, _ = mixer.scan(memory, query, key, value, log_decay)
    assert torch.allclose(found.double(), expected, atol=1e-5)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(found.square().sum(), leaves))
    assert decays(mixer, 1e4 * torch.randn(1, 50, 32, dtype=torch.float64)).min() >= -5


def test_longer_chunks_are_refused():
    with pytest.raises(ValueError, match="chunk_size must be at most 32"):
        mixer_of(chunk_size=64)
