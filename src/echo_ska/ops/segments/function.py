"""The parallel read as one differentiable function, in eager mode and, as one opaque operator, under a compiler."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from echo_ska.ops.segments.carry import Forward
from echo_ska.ops.segments.exact_pass import exact_backward, exact_forward
from echo_ska.ops.segments.frozen_pass import frozen_backward, frozen_forward
from echo_ska.ops.segments.plan import Cut, Plan, dense_plan, ragged_plan
from echo_ska.ops.segments.values import Call, Keep, Statistics

# Chunks that are read as they stand, each whitened by what it reads, begin to pay at this many tokens.
FROZEN_CHUNK = 32
CHUNK_TOKENS = 32
SEGMENT_TOKENS = 256
# Heads of all rows of a block together, for each thread of a CPU: what is worked on then stays near its cache.
BLOCK_HEADS = 48
# Heads of all rows of a block together, for each thread, from which on chunk after chunk keeps the threads busy.
CHUNK_HEADS = 8


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
    threads = torch.get_num_threads() if query.device.type == "cpu" else 0
    settings = (power, causal, refresh_interval or 0, chunk_size or 0, int(keep), final_state, threads)
    if torch.compiler.is_compiling():
        output, *sums = torch.ops.echo_ska.parallel_read(*inputs, position, bounds, *settings)[:4]
    else:
        output, *sums = _ParallelRead.apply(*inputs, position, bounds, *settings)
    return output, (sums[0], sums[1], sums[2])


class _ParallelRead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        output, gram, lag_moment, value_moment, *saved = _forward(*arguments)
        ctx.settings = arguments[16:]
        ctx.save_for_backward(*arguments[:16], *saved)
        ctx.set_materialize_grads(False)
        return output, gram, lag_moment, value_moment

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        found = _backward(*grads, *ctx.saved_tensors, *ctx.settings)
        return *found, None, None, *(None for _ in ctx.settings)


def _forward(*arguments: Any) -> tuple[Tensor, ...]:
    """See `_call` for the arguments; returns the output, three sums, and what `_backward` needs."""
    call, plan, keep = _call(*arguments)
    forward = exact_forward(call, plan, keep) if _is_exact(call) else frozen_forward(call, plan, keep)
    saved = (forward.saved_tokens, forward.saved_anchors, forward.lower)
    return forward.output, *forward.final.tensors(), *saved


def _backward(
    output_grad: Tensor | None,
    gram_grad: Tensor | None,
    lag_grad: Tensor | None,
    value_grad: Tensor | None,
    *rest: Any,
) -> list[Tensor | None]:
    """Gradients of the 14 differentiable inputs, from those of the outputs."""
    arguments, saved = (*rest[:16], *rest[19:]), rest[16:19]
    call, plan, _ = _call(*arguments)
    if output_grad is None:
        output_grad = call.value.new_zeros(()).expand(call.value.shape)
    backward = exact_backward if _is_exact(call) else frozen_backward
    forward = Forward(output_grad, call.initial, *saved)
    found = backward(call, plan, forward, output_grad, (gram_grad, lag_grad, value_grad))
    tokens = found.tokens
    frozen = (None, None, None) if found.frozen is None else found.frozen.tensors()
    return [
        tokens.query,
        tokens.key,
        tokens.value,
        tokens.write_weight,
        tokens.plain,
        tokens.filtered,
        found.ridge,
        *found.initial.tensors(),
        found.previous_key,
        *frozen,
    ]


def _is_exact(call: Call) -> bool:
    return call.causal and call.interval < FROZEN_CHUNK


def _call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    write_weight: Tensor | None,
    plain: Tensor | None,
    filtered: Tensor,
    ridge: Tensor,
    gram: Tensor,
    lag_moment: Tensor,
    value_moment: Tensor,
    previous_key: Tensor,
    frozen_gram: Tensor | None,
    frozen_lag: Tensor | None,
    frozen_value: Tensor | None,
    position: Tensor | None,
    bounds: Tensor | None,
    power: int,
    causal: bool,
    interval: int,
    chunk_size: int,
    keep: int,
    final_state: bool,
    threads: int,
) -> tuple[Call, Plan, Keep]:
    frozen = None
    if frozen_gram is not None and frozen_lag is not None and frozen_value is not None:
        frozen = Statistics(frozen_gram, frozen_lag, frozen_value)
    call = Call(
        query,
        key,
        value,
        write_weight,
        plain,
        filtered,
        ridge,
        Statistics(gram, lag_moment, value_moment),
        previous_key,
        frozen,
        power=power,
        causal=causal,
        interval=interval,
        dtype=torch.float64 if value.dtype == torch.float64 else torch.float32,
        final_state=final_state,
    )
    return call, _plan(call, position, bounds, chunk_size, threads), Keep(keep)


def _plan(call: Call, position: Tensor | None, bounds: Tensor | None, chunk_size: int, threads: int) -> Plan:
    batch, time, heads, _ = call.query.shape
    cut = _cut(call.causal, call.interval, chunk_size, heads, batch if bounds is None else len(bounds) - 1, threads)
    if bounds is None:
        starts, lengths = [(row, 0) for row in range(batch)], [time] * batch
    else:
        edges = bounds.tolist()
        starts = [(0, edge) for edge in edges[:-1]]
        lengths = [end - begin for begin, end in itertools.pairwise(edges)]
    if call.frozen is None or position is None:
        return dense_plan(batch, time, cut) if bounds is None else ragged_plan(starts, lengths, [0] * len(lengths), cut)
    # A lead ends where the next refresh begins.
    leads = [
        min(call.interval - read % call.interval, length)
        for read, length in zip(position.tolist(), lengths, strict=True)
    ]
    return ragged_plan(starts, lengths, leads, cut)


def _cut(causal: bool, interval: int, chunk_size: int, heads: int, sequences: int, threads: int) -> Cut:
    """The lengths of chunks and segments, and how many rows go through them together.

    Args:
        threads: of a CPU; 0 for another device, which is fed with all rows at once.
    """
    rows = max(1, BLOCK_HEADS * threads // heads) if threads else sequences
    if not causal:
        return Cut(SEGMENT_TOKENS, SEGMENT_TOKENS, rows)
    if interval >= FROZEN_CHUNK:
        return Cut(interval, SEGMENT_TOKENS, rows, interval)
    size = chunk_size or CHUNK_TOKENS
    if interval:
        size = max(interval, size // interval * interval)
    # Chunk after chunk needs the fewest operations, if the rows of one chunk keep all threads busy.
    at_once = threads == 0 or min(rows, sequences) * heads < CHUNK_HEADS * threads
    return Cut(size, SEGMENT_TOKENS, rows, max(interval, 1), at_once=at_once)
