"""Helpers of the peers' tests: layers away from their start, and gradients of everything."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def stirred(layer, seed=0):
    """The layer in float64 with every parameter moved, so that none hides at a 0 or a 1."""
    torch.manual_seed(seed)
    layer = layer.double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return layer


def assert_same_function(layer, definition, hidden, atol=1e-9):
    """Outputs, and gradients for the input and every parameter that the definition reads."""
    hidden = hidden.clone().requires_grad_()
    leaves = {"hidden": hidden, **dict(layer.named_parameters())}
    found, expected = layer(hidden)[0], definition(layer, hidden)
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)
    weights = torch.randn_like(found)
    gradients = [
        torch.autograd.grad((output * weights).sum(), list(leaves.values()), allow_unused=True)
        for output in (found, expected)
    ]
    for name, one, other in zip(leaves, *gradients, strict=True):
        assert (one is None) == (other is None), name
        if other is not None:
            assert other.abs().max() > 0, f"the check of {name} says nothing"
            torch.testing.assert_close(one, other, rtol=1e-9, atol=atol, msg=lambda m, name=name: f"{name}: {m}")


def rms(vectors, norm):
    """RMSNorm, written out."""
    return vectors * torch.rsqrt(vectors.square().mean(-1, keepdim=True) + norm.eps) * norm.weight


def gate(layer, hidden):
    """The stretched sigmoid of the write gate [B, T, H, 1], written out."""
    return (1.1 * torch.sigmoid(F.linear(hidden, layer.gate_proj.weight, layer.gate_proj.bias)) - 0.05).clamp(0, 1)[
        ..., None
    ]


def unit(vectors):
    """Of unit norm where they are not near 0, written out."""
    return vectors / torch.sqrt(vectors.square().sum(-1, keepdim=True) + 0.01)
