"""Based's attention against the weighted mean of values that it stands for."""

from __future__ import annotations

import pytest
import torch
from peer_layers import assert_same_function, gate, rms, stirred

from echo_ska.nn.peers import BasedAttention
from echo_ska.nn.peers.based import taylor_features


def definition(layer, hidden):
    query, key, value, _ = layer.qkv(hidden)
    scores = torch.einsum("nthr,nshr->nhts", query, key) / layer.rank**0.5
    weights = torch.tril(1 + scores + scores**2 / 2)
    if layer.gate_proj is not None:
        weights = weights * gate(layer, hidden)[..., 0].transpose(1, 2)[:, :, None]
    read = torch.einsum("nhts,nshp->nthp", weights / weights.sum(-1, keepdim=True), value)
    read = rms(read, layer.norm) if layer.norm is not None else read * layer.scale[:, None]
    return read.flatten(2) @ layer.o_proj.weight.mT


@pytest.mark.parametrize(
    "settings",
    [{}, {"chunk_size": 7}, {"conv_kernel": None, "write_gate": False, "output_norm": False, "chunk_size": 1}],
    ids=str,
)
def test_it_is_attention_with_a_polynomial_for_exp(settings):
    layer = stirred(BasedAttention(16, num_heads=2, rank=5, **settings))
    assert_same_function(layer, definition, torch.randn(2, 45, 16, dtype=torch.float64))


@pytest.mark.parametrize("length", [1, 33])
def test_it_is_another_implementation_of_the_same(length):
    naive = pytest.importorskip("fla.ops.based.naive", exc_type=ImportError).naive_parallel_based
    layer = BasedAttention(16, num_heads=2, rank=8, head_dim=8, chunk_size=16)
    query, key, value = torch.randn(3, 2, length, 2, 8)
    tokens = layer.tokens(torch.empty(0), query, key, value, None)
    found, _ = layer.scan(torch.zeros(2, *layer.memory_shape), *tokens)
    expected = naive(*(tensor.transpose(1, 2) for tensor in (query, key, value))).transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_features_multiply_to_the_polynomial():
    x, y = torch.randn(2, 10, 6, dtype=torch.float64)
    product = (x * y).sum(-1)
    found = (taylor_features(x) * taylor_features(y)).sum(-1)
    torch.testing.assert_close(found, 1 + product + product**2 / 2, rtol=0, atol=1e-12)
    assert taylor_features(x).shape[-1] == 1 + 6 + 21


def test_a_closed_gate_reads_zero():
    layer = BasedAttention(16, num_heads=2, rank=4, output_norm=False).double()
    with torch.no_grad():
        layer.gate_proj.bias.fill_(-100.0)
    output = layer(torch.randn(1, 9, 16, dtype=torch.float64))[0]
    assert torch.equal(output, torch.zeros_like(output))
