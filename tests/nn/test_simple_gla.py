"""Mamba-2's scan as gated linear attention, held to our own scan through the definition of the kernel it calls."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from echo_ska.nn import fla
from echo_ska.nn.fla import fla_function
from echo_ska.nn.mamba2 import state_space_scan
from echo_ska.nn.peers import DeltaNet, GatedDeltaNet, GatedLinearAttention, LinearAttention
from echo_ska.nn.simple_gla import SIMPLE_GLA, simple_gla_scan


def gated_linear_attention(q, k, v, g, *, scale, initial_state, output_final_state, cu_seqlens):
    """What `chunk_simple_gla` computes: S_t = exp(g_t) S_{t-1} + k_t v_t^T and o_t = scale q_t^T S_t."""
    if cu_seqlens is None:
        bounds = [(row, 0, q.shape[1]) for row in range(q.shape[0])]
    else:
        bounds = [(0, begin, end) for begin, end in zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True)]
    output, finals = torch.empty_like(v), []
    for number, (row, begin, end) in enumerate(bounds):
        state = q.new_zeros(q.shape[2], q.shape[3], v.shape[3]) if initial_state is None else initial_state[number]
        for t in range(begin, end):
            state = g[row, t, :, None, None].exp() * state + k[row, t, :, :, None] * v[row, t, :, None, :]
            output[row, t] = scale * (q[row, t, :, None, :] @ state).squeeze(1)
        finals.append(state)
    return output, torch.stack(finals) if output_final_state else None


def inputs(batch: int, time: int, kernel_dtype: torch.dtype, device: str = "cpu"):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, kernel_dtype)

    heads, width, size = 2, 32, 16
    return {
        "x": normal(batch, time, heads, width),
        "dt": F.softplus(normal(batch, time, heads)),
        "A": -normal(heads).exp(),
        "B": normal(batch, time, size),
        "C": normal(batch, time, size),
    }


@pytest.mark.parametrize("packed", [False, True])
def test_the_scan_is_gated_linear_attention(packed):
    tensors = inputs(1 if packed else 2, 20, torch.float64)
    bounds = torch.tensor([0, 7, 20]) if packed else None
    before = torch.randn(2, 2, 32, 16, dtype=torch.float64)
    expected = state_space_scan(**tensors, state=before, cu_seqlens=bounds, output_state=True)
    found = simple_gla_scan(gated_linear_attention, **tensors, state=before, cu_seqlens=bounds, output_state=True)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    assert simple_gla_scan(gated_linear_attention, **tensors, cu_seqlens=bounds)[1] is None


@pytest.mark.parametrize(
    ("triton", "capability", "broken"),
    [
        ("3.3.1", (9, 0), False),
        ("3.6.0", (9, 0), True),
        ("3.7.0rc1", (9, 0), True),
        ("3.6.0", (8, 0), False),
        ("3.7.1+git", (9, 0), False),
    ],
)
def test_a_triton_that_breaks_the_gates_gradient_is_told_apart(triton, capability, broken, monkeypatch, caplog):
    monkeypatch.setattr(fla, "version", lambda name: triton)
    fla._miscompiled.cache_clear()
    try:
        assert fla._miscompiled(capability) is broken
    finally:
        fla._miscompiled.cache_clear()
    assert ("install triton>=3.7.1" in caplog.text) is broken
    decays = {peer for peer in (LinearAttention, DeltaNet, GatedDeltaNet, GatedLinearAttention) if peer.kernel_decays}
    assert decays == {DeltaNet, GatedDeltaNet}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernel runs on a GPU alone")
def test_the_kernel_computes_its_definition():
    pytest.importorskip("fla", exc_type=ImportError)
    tensors = inputs(2, 300, torch.float32, "cuda")
    expected = state_space_scan(**tensors, output_state=True)
    found = simple_gla_scan(fla_function(SIMPLE_GLA), **tensors, output_state=True)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=5e-3 * float(other.abs().max()))
