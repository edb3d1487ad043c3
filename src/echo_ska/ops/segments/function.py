"""The parallel read as one differentiable function, in eager mode and, as one opaque operator, under a compiler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from echo_ska.ops.derivatives import first_derivatives
from echo_ska.ops.segments.node import read_node
from echo_ska.ops.segments.passes import backward, forward, threads_of
from echo_ska.ops.segments.values import Keep


def parallel_read(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    write_weight: Tensor | None,
    plain: Tensor | None,
    filtered: Tensor,
    ridge: Tensor,
    initial: Sequence[Tensor],
    frozen: Sequence[Tensor] | None,
    position: Tensor | None,
    bounds: Tensor | None,
    *,
    power: int,
    causal: bool,
    refresh_interval: int | None,
    chunk_size: int | None,
    recompute: bool,
    final_state: bool,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Read every token and write it.

    Args:
        query, key: [B, T, H, r], B T >= 1.
        value: [B, T, H, P].
        write_weight: [B, T, H] or None for 1.
        plain, filtered: the shares of p_0 (None for none) and of p_K in what is read, [B, T, H].
        ridge: [H], in the accumulator's dtype.
        initial: gram, lag moment, value moment and previous key of the N sequences, likewise.
        frozen: gram, lag moment and value moment that the tokens before the next refresh read; None if no token has
            been read yet, or without a refresh interval.
        position: tokens that each sequence has read, [N], int64; read only with `frozen`.
        bounds: [N + 1] boundaries of sequences packed along time (B = 1), int64; None for N = B batch rows.
        power: K.
        causal, refresh_interval, chunk_size, recompute: as of the front door.
        final_state: whether the sums returned are asked for.

    Returns:
        The output [B, T, H, P], float64 if `value` is, else float32; gram, lag moment and value moment at the end.
    """
    inputs = (query, key, value, write_weight, plain, filtered, ridge, *initial, *(frozen or (None, None, None)))
    differentiable = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs)
    keep = Keep.NOTHING if not differentiable else Keep.ANCHORS if recompute else Keep.TOKENS
    cut = (power, causal, refresh_interval or 0, chunk_size or 0)
    if torch.compiler.is_compiling():
        output, *sums = read_node(*inputs, position, bounds, *cut, final_state)
    else:
        settings = (*cut, int(keep), final_state, threads_of(query))
        output, *sums = _ParallelRead.apply(*inputs, position, bounds, *settings)
    return output, (sums[0], sums[1], sums[2])


class _ParallelRead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        output, gram, lag_moment, value_moment, *saved = forward(*arguments)
        ctx.settings = arguments[16:]
        ctx.save_for_backward(*arguments[:16], *saved)
        ctx.set_materialize_grads(False)
        return output, gram, lag_moment, value_moment

    @staticmethod
    @first_derivatives
    def backward(
        ctx: Any, saved: tuple[Tensor | None, ...], grads: tuple[Tensor | None, ...]
    ) -> tuple[Tensor | None, ...]:
        found = backward(*grads, *saved, *ctx.settings)
        return *found, None, None, *(None for _ in ctx.settings)
