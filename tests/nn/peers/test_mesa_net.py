"""MesaNet against an exact solve of its own system at every token."""

from __future__ import annotations

import pytest
import torch
from peer_layers import assert_same_function, gate, rms, stirred, unit

from echo_ska.nn import SpectralKoopmanAttention
from echo_ska.nn.peers import MesaNet
from echo_ska.nn.peers.mesa_net import conjugate_gradients


def definition(layer, hidden):
    query, key, value, _ = layer.qkv(hidden)
    query, key = unit(query), unit(key)
    weight = gate(layer, hidden) if layer.gate_proj is not None else torch.ones_like(key[..., :1])
    ridge = torch.diag_embed(0.25 + torch.log1p(torch.exp(layer.ridge.raw_ridge)))
    decay = torch.ones_like(weight[..., 0])
    if layer.decay is not None:
        steps = torch.log1p(torch.exp(layer.decay.proj(hidden) + layer.decay.dt_bias))
        decay = torch.exp(-torch.exp(layer.decay.A_log) * steps)
    gram = key.new_zeros(len(hidden), layer.num_heads, layer.rank, layer.rank)
    moment = key.new_zeros(len(hidden), layer.num_heads, layer.head_dim, layer.rank)
    reads = []
    for t in range(hidden.shape[1]):
        k, v, b, g = key[:, t], value[:, t], weight[:, t, :, :, None], decay[:, t, :, None, None]
        gram = g * gram + b * k[..., :, None] * k[..., None, :]
        moment = g * moment + b * v[..., :, None] * k[..., None, :]
        reads.append(moment @ torch.linalg.solve(gram + ridge, query[:, t, :, :, None]))
    read = torch.stack(reads, dim=1).squeeze(-1)
    read = rms(read, layer.norm) if layer.norm is not None else read * layer.scale[:, None]
    return read.flatten(2) @ layer.o_proj.weight.mT


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"chunk_size": 7, "decay": False},
        {"conv_kernel": None, "write_gate": False, "output_norm": False, "chunk_size": 1},
    ],
    ids=str,
)
def test_it_is_the_exact_ridge_regression(settings):
    layer = stirred(MesaNet(16, num_heads=2, rank=6, **settings))
    assert_same_function(layer, definition, torch.randn(2, 45, 16, dtype=torch.float64))


@pytest.mark.parametrize("length", [1, 40])
def test_it_is_another_implementation_of_the_same(length):
    naive = pytest.importorskip("fla.ops.mesa_net.naive", exc_type=ImportError).naive_mesa_net_exact
    torch.manual_seed(0)
    layer = MesaNet(16, num_heads=2, rank=8, head_dim=8, chunk_size=16)
    query, key, value = torch.nn.functional.normalize(torch.randn(3, 2, length, 2, 8), dim=-1)
    weight, log_decay = torch.rand(2, length, 2, 1), -torch.rand(2, length, 2, 1)
    with torch.no_grad():
        ridge = layer.ridge(torch.float32)
        memory = torch.zeros(2, *layer.memory_shape)
        found, after = layer.scan(
            memory, query, weight * key, torch.cat([value, key], -1), ridge.expand_as(query), log_decay
        )
        expected, gram, moment = naive(query, key, value, log_decay[..., 0], ridge, weight[..., 0])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(after, torch.cat([moment.mT, gram], dim=-2), rtol=0, atol=1e-5)


def test_without_forgetting_it_is_ska_of_power_0():
    """The one difference left is the ridge, one number a head in SKA, and here one a channel."""
    ska = stirred(SpectralKoopmanAttention(16, num_heads=2, rank=6, power=0, fixed_ridge=True))
    layer = MesaNet(16, num_heads=2, rank=6, decay=False).double()
    weights = ska.state_dict()
    # softplus(raw) + 0.25 is to be SKA's ridge
    excess = ska.ridge.detach() - 0.25
    weights["ridge.raw_ridge"] = torch.log(torch.expm1(excess))[:, None].expand(2, 6)
    del weights["raw_ridge"]
    layer.load_state_dict(weights)
    hidden = torch.randn(2, 50, 16, dtype=torch.float64)
    torch.testing.assert_close(layer(hidden)[0], ska(hidden)[0], rtol=0, atol=1e-9)


def test_conjugate_gradients_solve_and_end_at_zero():
    torch.manual_seed(0)
    root = torch.randn(5, 6, 6, dtype=torch.float64)
    matrix = root @ root.mT + torch.eye(6, dtype=torch.float64)
    right = torch.randn(5, 6, dtype=torch.float64)
    right[0] = 0
    calls = []

    def product(x):
        calls.append(x)
        return (matrix @ x[..., None])[..., 0]

    expected = torch.linalg.solve(matrix, right)
    torch.testing.assert_close(conjugate_gradients(product, right, steps=30), expected, rtol=0, atol=1e-12)
    assert len(calls) == 30
    calls.clear()
    found = conjugate_gradients(product, right, steps=30, tolerance=1e-12)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert len(calls) < 12, "it should end where the residuals are small"
    one = conjugate_gradients(product, right, steps=1)
    assert (one - expected).abs().max() > 1e-3, "the number of steps should matter"


def test_repeated_keys_stay_finite_in_float32():
    torch.manual_seed(0)
    layer = MesaNet(16, num_heads=2, rank=8, decay=False)
    hidden = torch.randn(1, 4, 16).repeat(1, 500, 1).requires_grad_()
    output = layer(hidden)[0]
    output.square().sum().backward()
    assert bool(hidden.grad.isfinite().all())
    torch.testing.assert_close(output.double(), layer.double()(hidden.double())[0], rtol=0, atol=1e-4)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match=r"above its lower bound 0\.25, got 0\.25"):
        MesaNet(16, num_heads=2, rank=6, initial_ridge=0.25)
    with pytest.raises(ValueError, match="cg_steps must be at least 1, got 0"):
        MesaNet(16, num_heads=2, rank=6, cg_steps=0)


def test_second_derivatives_are_refused_and_not_0():
    layer = MesaNet(16, num_heads=2, rank=4, head_dim=8)
    hidden = torch.randn(1, 9, 16)
    (gradient,) = torch.autograd.grad(layer(hidden)[0].sum(), layer.qkv.q_proj.weight, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(gradient.square().sum(), layer.qkv.q_proj.weight)
