"""The control without a solve: causal linear attention by chunks, in products of matrices alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from echo_ska.benchmarks.operations import LINEAR_CHUNK
from echo_ska.nn.peers.chunks import chunk_bounds, heads_first, put_heads_first


def linear_attention(
    query: Tensor, key: Tensor, value: Tensor, state: Tensor | None = None, *, chunk_size: int = LINEAR_CHUNK
) -> tuple[Tensor, Tensor]:
    """y_t = sum_{s<=t} v_s (k_s . q_t), unnormalised, and the sum after the last token.

    A loop over chunks with the heads as the batch: its working set stays in a core's cache, and the backward pass
    keeps nothing but the inputs and one state a chunk.

    Args:
        query, key: [B, T, H, r].
        value: [B, T, H, P].
        state: sum of k_s v_s^T before the first token, [B, H, r, P], or None for zeros.
        chunk_size: tokens of a chunk; it does not change the function.

    Returns:
        [B, T, H, P] and [B, H, r, P].
    """
    batch, _, heads, rank = query.shape
    if state is None:
        state = query.new_zeros(batch, heads, rank, value.shape[-1])
    output, final = _LinearAttention.apply(query, key, value, state, chunk_size)
    return output, final


class _LinearAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, state: Tensor, chunk_size: int
    ) -> tuple[Tensor, Tensor]:
        output = torch.empty_like(value)
        current = state.flatten(0, 1)  # [B H, r, P]
        starts = []
        mask = _causal_mask(query, chunk_size)
        for begin, end in chunk_bounds(query.shape[1], chunk_size):
            q, k, v = (heads_first(tensor, begin, end) for tensor in (query, key, value))
            scores = (q @ k.mT).mul_(mask[: end - begin, : end - begin])
            put_heads_first(output, begin, end, torch.baddbmm(q @ current, scores, v))
            starts.append(current)
            current = torch.baddbmm(current, k.mT, v)
        ctx.save_for_backward(query, key, value, *starts)
        ctx.chunk_size = chunk_size
        return output, current.view_as(state)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        query, key, value, *starts = ctx.saved_tensors
        of_output, of_final = gradients
        of_query, of_key, of_value = (torch.empty_like(tensor) for tensor in (query, key, value))
        carried = of_final.flatten(0, 1)  # gradient of the state after the chunk, [B H, r, P]
        mask = _causal_mask(query, ctx.chunk_size)
        chunks = list(chunk_bounds(query.shape[1], ctx.chunk_size))
        for (begin, end), start in zip(reversed(chunks), reversed(starts), strict=True):
            q, k, v, g = (heads_first(tensor, begin, end) for tensor in (query, key, value, of_output))
            own = mask[: end - begin, : end - begin]
            scores, of_scores = (q @ k.mT).mul_(own), (g @ v.mT).mul_(own)
            put_heads_first(of_query, begin, end, torch.baddbmm(g @ start.mT, of_scores, k))
            put_heads_first(of_key, begin, end, torch.baddbmm(v @ carried.mT, of_scores.mT, q))
            put_heads_first(of_value, begin, end, torch.baddbmm(k @ carried, scores.mT, g))
            carried = torch.baddbmm(carried, q.mT, g)
        return of_query, of_key, of_value, carried.view_as(of_final), None


def _causal_mask(like: Tensor, size: int) -> Tensor:
    return torch.ones(size, size, dtype=like.dtype, device=like.device).tril()
