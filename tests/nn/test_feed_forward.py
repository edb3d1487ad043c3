"""Feed-forward layers: the formula, the clamp, the parameter counts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from echo_ska.nn import KoopmanMLP, SwiGLU
from echo_ska.nn.feed_forward import default_intermediate_size


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("hidden", "inner"), [(768, 2048), (448, 1216), (128, 384), (64, 192)])
def test_the_default_width(hidden, inner):
    assert default_intermediate_size(hidden) == inner


@pytest.mark.parametrize("gated", [False, True])
def test_koopman_mlp_is_lift_blocks_readout(gated):
    torch.manual_seed(0)
    layer = KoopmanMLP(8, 6, gated=gated)
    torch.nn.init.normal_(layer.cosine)
    torch.nn.init.normal_(layer.sine)
    hidden = torch.randn(3, 5, 8)
    lifted = F.silu(hidden @ layer.lift_proj.weight.T).detach()
    advanced = torch.empty_like(lifted)
    cosine, sine = layer.cosine.detach(), layer.sine.detach()
    for pair in range(3):
        block = torch.tensor([[cosine[pair], sine[pair]], [-sine[pair], cosine[pair]]])
        modulus = float(torch.linalg.vector_norm(block[0]))
        advanced[..., [pair, pair + 3]] = lifted[..., [pair, pair + 3]] @ (block / max(modulus, 1.0)).T
    if gated:
        advanced = advanced * torch.sigmoid(hidden @ layer.gate_proj.weight.T)
    assert torch.allclose(layer(hidden), advanced @ layer.readout_proj.weight.T, atol=1e-6)


def test_the_modulus_never_exceeds_one_and_starts_there():
    layer = KoopmanMLP(8, 6)
    assert (layer.cosine.square() + layer.sine.square() == 1).all()
    torch.nn.init.constant_(layer.cosine, 5.0)
    torch.nn.init.eye_(layer.lift_proj.weight)
    torch.nn.init.eye_(layer.readout_proj.weight)
    hidden = torch.randn(100, 8)
    assert float(layer(hidden).detach().norm()) <= float(F.silu(hidden).norm()) + 1e-5


@pytest.mark.parametrize("modulus", [1.0, 1.5])
def test_blocks_on_the_circle_and_beyond_it_come_back_into_the_disk(modulus):
    """Taught by blocks of modulus 1/2, from the start and from outside, cosine and sine alone."""
    torch.manual_seed(0)
    layer, teacher = KoopmanMLP(16, 64), KoopmanMLP(16, 64)
    teacher.load_state_dict(layer.state_dict())
    torch.nn.init.constant_(teacher.cosine, 0.5)
    torch.nn.init.constant_(layer.cosine, modulus)
    hidden = torch.randn(256, 16)
    goal = teacher(hidden).detach()
    optimizer = torch.optim.SGD([layer.cosine, layer.sine], lr=100.0)
    for _ in range(500):
        optimizer.zero_grad()
        F.mse_loss(layer(hidden), goal).backward()
        optimizer.step()
    torch.testing.assert_close(layer.cosine, teacher.cosine, rtol=0, atol=1e-2)
    torch.testing.assert_close(layer.sine, teacher.sine, rtol=0, atol=1e-2)


def test_gradients_are_finite_at_a_modulus_of_zero():
    layer = KoopmanMLP(8, 6)
    torch.nn.init.zeros_(layer.cosine)
    layer(torch.randn(4, 8)).sum().backward()
    assert layer.cosine.grad.isfinite().all()
    assert float(layer.cosine.grad.abs().max()) > 0


def test_matrices_compared_with_swiglu():
    swiglu, plain, gated = SwiGLU(64), KoopmanMLP(64), KoopmanMLP(64, gated=True)
    assert count(plain) - 192 == 2 * 64 * 192
    assert count(swiglu) == count(gated) - 192 == 3 * 64 * 192


def test_an_odd_width_is_refused():
    with pytest.raises(ValueError, match="must be even, its channels are rotated in pairs; got 5"):
        KoopmanMLP(8, 5)
