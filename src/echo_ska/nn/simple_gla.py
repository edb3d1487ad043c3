"""Mamba-2's scan by flash-linear-attention's Triton kernels, for GPUs: the same recurrence under another name."""

from __future__ import annotations

from torch import Tensor

from echo_ska.nn.fla import Kernel

SIMPLE_GLA = "fla.ops.simple_gla.chunk_simple_gla"


def simple_gla_scan(
    kernel: Kernel,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor | None = None,
    *,
    cu_seqlens: Tensor | None = None,
    output_state: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """`state_space_scan` by gated linear attention S_t = exp(g_t) S_{t-1} + k_t v_t^T, o_t = q_t^T S_t.

    C is the query, B the key, dt x the value and dt A the logarithm of the gate; S is the state transposed.

    Args:
        kernel: `chunk_simple_gla`, or a function of the same signature.
        x, dt, A, B, C, state, cu_seqlens, output_state: as of `state_space_scan`.

    Returns:
        y [B, T, H, P] and the final state [rows, H, P, N] or None.
    """
    heads = x.shape[2]
    query, key = (shared.unsqueeze(2).expand(-1, -1, heads, -1).contiguous() for shared in (C, B))
    y, final = kernel(
        query,
        key,
        x * dt.unsqueeze(-1),
        dt * A,
        scale=1.0,
        initial_state=None if state is None else state.to(x.dtype).mT.contiguous(),
        output_final_state=output_state,
        cu_seqlens=None if cu_seqlens is None else cu_seqlens.to(x.device),  # wherever the caller has it
    )
    return y, None if final is None else final.mT.contiguous()
