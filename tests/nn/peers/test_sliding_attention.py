"""Sliding-window attention against softmax over the window, token by token."""

from __future__ import annotations

import pytest
import torch
from peer_layers import assert_same_function, stirred

from echo_ska.nn import SoftmaxAttention
from echo_ska.nn.peers import SlidingAttention
from echo_ska.nn.peers.sliding_attention import windowed_attention


def rotated(vectors, position, theta):
    """Rotary positions as complex numbers: channel i is the real part of pair i, channel i + D/2 the imaginary one."""
    half = vectors.shape[-1] // 2
    pairs = torch.complex(vectors[..., :half], vectors[..., half:])
    angles = position * theta ** (-torch.arange(half, dtype=torch.float64) / half)
    turned = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], dim=-1)


def definition(layer, hidden):
    query, key, value, _ = layer.qkv(hidden)
    length = hidden.shape[1]
    query, key = (
        torch.stack([rotated(vectors[:, t], t, layer.rope_theta) for t in range(length)], dim=1)
        for vectors in (query, key)
    )
    reads = []
    for t in range(length):
        seen = slice(max(0, t - layer.window + 1), t + 1)
        scores = torch.einsum("nhd,nshd->nhs", query[:, t], key[:, seen]) / layer.head_dim**0.5
        reads.append(torch.einsum("nhs,nshd->nhd", scores.softmax(-1), value[:, seen]))
    return torch.stack(reads, dim=1).flatten(2) @ layer.o_proj.weight.mT


@pytest.mark.parametrize("window", [2, 7, 40])
def test_it_is_softmax_over_the_window(window):
    layer = stirred(SlidingAttention(16, num_heads=2, window=window, conv_kernel=None))
    assert_same_function(layer, definition, torch.randn(2, 33, 16, dtype=torch.float64))


def test_a_window_of_one_reads_the_token_itself():
    layer = stirred(SlidingAttention(16, num_heads=2, window=1, conv_kernel=None))
    hidden = torch.randn(2, 9, 16, dtype=torch.float64)
    expected = hidden @ layer.qkv.v_proj.weight.mT @ layer.o_proj.weight.mT
    torch.testing.assert_close(layer(hidden)[0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("window", [1, 5, 16, 17])
@pytest.mark.parametrize("length", [1, 15, 16, 17, 35, 64])
def test_it_is_another_implementation_of_the_same(window, length):
    naive = pytest.importorskip("fla.ops.attn.naive", exc_type=ImportError).naive_parallel_attn
    query, key, value = torch.randn(3, 2, length, 2, 8)
    expected = naive(query, key, value, window_size=window)[0]
    torch.testing.assert_close(windowed_attention(query, key, value, window), expected, rtol=0, atol=1e-5)


def test_up_to_the_window_it_is_softmax_attention():
    torch.manual_seed(0)
    full = SoftmaxAttention(16, num_heads=2).double()
    layer = SlidingAttention(16, num_heads=2, window=20).double()
    layer.load_state_dict(full.state_dict())
    hidden = torch.randn(2, 60, 16, dtype=torch.float64)
    expected, found = full(hidden)[0], layer(hidden)[0]
    torch.testing.assert_close(found[:, :20], expected[:, :20], rtol=0, atol=1e-12)
    assert (found[:, 20:] - expected[:, 20:]).abs().amax(-1).min() > 1e-4


def test_what_left_the_window_is_forgotten():
    layer = stirred(SlidingAttention(16, num_heads=2, window=8, conv_kernel=None))
    hidden = torch.randn(1, 40, 16, dtype=torch.float64)
    before, state = layer(hidden, output_state=True)
    hidden[:, :20] += 1
    after, other = layer(hidden, output_state=True)
    torch.testing.assert_close(after[:, 27:], before[:, 27:], rtol=0, atol=1e-12)
    assert (after[:, 26] - before[:, 26]).abs().max() > 1e-6
    torch.testing.assert_close(other.tensors(), state.tensors(), rtol=0, atol=1e-12)


def test_the_state_stops_growing():
    layer = SlidingAttention(16, num_heads=2, window=8)
    assert layer.state_bytes(1) == layer.state_bytes(1_000_000) == (3 * 48 + 2 * 8 * 16) * 4 + 8


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        SlidingAttention(16, num_heads=2, window=0)
    with pytest.raises(ValueError, match="head_dim must be even"):
        SlidingAttention(16, num_heads=2, window=4, head_dim=5)
