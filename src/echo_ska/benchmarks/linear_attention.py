"""The control without a solve: causal linear attention by chunks, in products of matrices alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from echo_ska.benchmarks.operations import LINEAR_CHUNK


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
        for begin, end in _chunks(query.shape[1], chunk_size):
            q, k, v = (_heads_first(tensor, begin, end) for tensor in (query, key, value))
            scores = (q @ k.mT).mul_(mask[: end - begin, : end - begin])
            _put(output, begin, end, torch.baddbmm(q @ current, scores, v))
            starts.append(current)
            current = torch.baddbmm(current, k.mT, v)
        ctx.save_for_backward(query, key, value, *starts)
        ctx.chunk_size = chunk_size
        return output, current.view_as(state)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        query, key, value, *starts = ctx.saved_tensors
        of_output, of_final = gradients
        of_query, of_key, of_value = (torch.empty_like(tensor) for tensor in (query, key, value))
        carried = of_final.flatten(0, 1)  # gradient of the state after the chunk, [B H, r, P]
        mask = _causal_mask(query, ctx.chunk_size)
        chunks = list(_chunks(query.shape[1], ctx.chunk_size))
        for (begin, end), start in zip(reversed(chunks), reversed(starts), strict=True):
            q, k, v, g = (_heads_first(tensor, begin, end) for tensor in (query, key, value, of_output))
            own = mask[: end - begin, : end - begin]
            scores, of_scores = (q @ k.mT).mul_(own), (g @ v.mT).mul_(own)
            _put(of_query, begin, end, torch.baddbmm(g @ start.mT, of_scores, k))
            _put(of_key, begin, end, torch.baddbmm(v @ carried.mT, of_scores.mT, q))
            _put(of_value, begin, end, torch.baddbmm(k @ carried, scores.mT, g))
            carried = torch.baddbmm(carried, q.mT, g)
        return of_query, of_key, of_value, carried.view_as(of_final), None


def _chunks(time: int, size: int) -> Iterator[tuple[int, int]]:
    for begin in range(0, time, size):
        yield begin, min(begin + size, time)


def _causal_mask(like: Tensor, size: int) -> Tensor:
    return torch.ones(size, size, dtype=like.dtype, device=like.device).tril()


def _heads_first(tokens: Tensor, begin: int, end: int) -> Tensor:
    """[B, T, H, D] -> [B H, S, D], contiguous, of the tokens from `begin` to `end` - 1."""
    return tokens[:, begin:end].transpose(1, 2).flatten(0, 1)


def _put(tokens: Tensor, begin: int, end: int, chunk: Tensor) -> None:
    """[B H, S, D] -> those tokens of [B, T, H, D]."""
    into = tokens[:, begin:end].transpose(1, 2)  # [B, H, S, D]
    into.copy_(chunk.view(into.shape))
