"""The passes of a parallel read: its arguments as flat tensors and numbers, brought into a call and a plan."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from echo_ska.ops.segments.carry import Forward
from echo_ska.ops.segments.exact_pass import exact_backward, exact_forward
from echo_ska.ops.segments.frozen_pass import frozen_backward, frozen_forward
from echo_ska.ops.segments.plan import Cut, SegmentPlan, dense_plan, ragged_plan
from echo_ska.ops.segments.values import Call, Keep, Statistics

# Chunks that are read as they stand, each whitened by what it reads, begin to pay at this many tokens.
FROZEN_CHUNK = 32
CHUNK_TOKENS = 32
SEGMENT_TOKENS = 256
# Heads of all rows of a block together, for each thread of a CPU: what is worked on then stays near its cache.
BLOCK_HEADS = 48
# Heads of all rows of a block together, for each thread, from which on chunk after chunk keeps the threads busy.
CHUNK_HEADS = 8


def threads_of(tensor: Tensor) -> int:
    """The threads that the passes will have on this tensor's device: of a CPU; 0 for another device."""
    return torch.get_num_threads() if tensor.device.type == "cpu" else 0


def forward(*arguments: Any) -> tuple[Tensor, ...]:
    """See `_call` for the arguments; returns the output, three sums, and what `backward` needs."""
    call, plan, keep = _call(*arguments)
    found = exact_forward(call, plan, keep) if _is_exact(call) else frozen_forward(call, plan, keep)
    return found.output, *found.final.tensors(), found.saved_tokens, found.saved_anchors, found.lower


def backward(
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
    run = exact_backward if _is_exact(call) else frozen_backward
    kept = Forward(output_grad, call.initial, *saved)
    found = run(call, plan, kept, output_grad, (gram_grad, lag_grad, value_grad))
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
) -> tuple[Call, SegmentPlan, Keep]:
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


def _plan(call: Call, position: Tensor | None, bounds: Tensor | None, chunk_size: int, threads: int) -> SegmentPlan:
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
