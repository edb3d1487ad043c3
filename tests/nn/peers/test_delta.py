"""The delta rule against flash-linear-attention's definitions, and what it is for."""

from __future__ import annotations

import pytest
import torch
from textbook import random_tokens

from echo_ska.nn.peers import DeltaNet, GatedDeltaNet


def scan(kind, memory, tokens):
    return kind(32, num_heads=2, rank=8, head_dim=6).scan(memory, *tokens)


def test_it_is_flas():
    naive = pytest.importorskip("fla.ops.delta_rule.naive", exc_type=ImportError)
    tokens, memory = random_tokens(DeltaNet), torch.randn(2, 2, 6, 8, dtype=torch.float64)
    found, final = scan(DeltaNet, memory, tokens)
    query, key, value, strength = (tensor.transpose(1, 2) for tensor in tokens)
    expected, last = naive.delta_rule_recurrence(query * 8**0.5, key, value, strength, initial_state=memory.mT)
    assert torch.allclose(found.transpose(1, 2), expected, atol=1e-5)
    assert torch.allclose(final.mT.float(), last.float(), atol=1e-5)


def test_the_gated_form_is_flas():
    naive = pytest.importorskip("fla.ops.gated_delta_rule.naive", exc_type=ImportError)
    tokens, memory = random_tokens(GatedDeltaNet, hard=True), torch.randn(2, 2, 6, 8, dtype=torch.float64)
    found, final = scan(GatedDeltaNet, memory, tokens)
    query, key, value, strength, log_decay = tokens
    expected, last = naive.naive_recurrent_gated_delta_rule(
        query,
        key,
        value,
        strength[..., 0],
        log_decay[..., 0],
        scale=1.0,
        initial_state=memory.mT,
        output_final_state=True,
    )
    assert torch.allclose(found.float(), expected, atol=1e-5)
    assert torch.allclose(final.mT.float(), last, atol=1e-5)


def test_without_decay_the_gated_form_is_the_plain_one():
    tokens, memory = random_tokens(DeltaNet), torch.randn(2, 2, 6, 8, dtype=torch.float64)
    plain, _ = scan(DeltaNet, memory, tokens)
    gated, _ = scan(GatedDeltaNet, memory, [*tokens, torch.zeros_like(tokens[3])])
    assert torch.allclose(plain, gated, atol=1e-12)


def test_a_key_written_again_holds_its_last_value():
    _, key, value, strength = random_tokens(DeltaNet, length=40, hard=True)
    read, _ = scan(DeltaNet, torch.zeros(2, 2, 6, 8, dtype=torch.float64), [key, key, value, strength])
    assert torch.allclose(read, value, atol=1e-9)
