"""The compiled kernels as operators that autograd, torch.compile and torch.export know."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from echo_ska.algebra import RidgeFactor
from echo_ska.ops.arguments import WHOLE_WINDOW
from echo_ska.ops.derivatives import first_derivatives, refuse_second_derivative
from echo_ska.ops.native.build import Call, library
from echo_ska.ops.native.workers import work_through

CHUNK_SIZE = 32
SEGMENT_LENGTH = 256
# A segment is no longer than what stands before it (but for the first): then no direction's share of the Gram matrix
# grows by orders of magnitude between two factorisations, which float32 tokens could not follow.
FIRST_SEGMENT_LENGTH = 64
LARGE_BYTES = 4 << 20
# What is kept per token pays while it stays near the processor; what is more is computed again (docs/benchmarks.md).
KEPT_BYTES = 64 << 20
MOST_WINDOWS = 16  # of a chunk-causal segment of short windows; each keeps its statistics during the backward pass

MOMENTS_AFTER = ("gram_after", "lag_after", "moment_after", "gram_frozen", "lag_frozen", "moment_frozen")
Results = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _read(
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
    count: Tensor,
    bounds: Tensor,
    power: int,
    interval: int,
    keep_rows: bool,
    keep_anchors: bool,
    final_state: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Causal reads of every token, exact (interval 0) or chunk-causal.

    Args:
        query, key: [B, T, H, r], float32 or float64, contiguous like all the rest.
        value: [B, T, H, P].
        write_weight, plain, filtered: [B, T, H]; see `ops.sequences.coefficients`.
        ridge: [H], float64.
        gram, lag_moment, value_moment, previous_key, count: the initial statistics, N rows, float64.
        bounds: [N + 1], flat tokens.
        power, interval: K, and the refresh interval or 0.
        keep_rows, keep_anchors: what the backward pass will need; with anchors alone it computes the rows again.
        final_state: whether the moments are wanted; else those of the lag may be left out.

    Returns:
        The output [B, T, H, P]; the final gram, lag and value moments; the same where the last window of a
        chunk-causal read begins; and what is kept: rows, anchors, the last Cholesky factor transposed.

    Raises:
        ArithmeticError: a Gram matrix plus the ridge, or the share of a chunk in the dtype of the tokens, is not
            positive definite; names the sequence and head.
    """
    call = _describe(query, value, power, interval, bounds, count)
    call.keep_rows, call.keep_anchors, call.sum_lags = keep_rows, keep_anchors, final_state or power > 0
    results = _results(query, value, gram, lag_moment, value_moment, power, interval, keep_rows, keep_anchors)
    output, *after_and_frozen, rows, anchors, last_upper = results
    _expect_large(output, rows, anchors)
    info = torch.zeros(gram.shape[:2], dtype=torch.int32, device=gram.device)
    _point_to_inputs(call, query, key, value, write_weight, plain, filtered, ridge)
    call.point(gram=gram, lag_moment=lag_moment, value_moment=value_moment, previous_key=previous_key)
    call.point(output=output, rows=rows, anchors=anchors, last_upper=last_upper, info=info)
    for name, tensor in zip(MOMENTS_AFTER, after_and_frozen, strict=True):
        call.point(**{name: tensor})
    work_through(call)
    RidgeFactor(gram, info.clamp_min(0)).require_success()
    _require_chunks(info, query.dtype)
    return results


_read_node = torch.library.custom_op("echo_ska::native_read", _read, mutates_args=(), device_types="cpu")


@_read_node.register_fake
def _(
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
    count: Tensor,
    bounds: Tensor,
    power: int,
    interval: int,
    keep_rows: bool,
    keep_anchors: bool,
    final_state: bool,
) -> Results:
    return _results(query, value, gram, lag_moment, value_moment, power, interval, keep_rows, keep_anchors)


def _require_chunks(info: Tensor, dtype: torch.dtype) -> None:
    """Raises ArithmeticError where `info` [N, H] is negative: a chunk's own factorisation failed."""
    if bool((info < 0).any()):
        row, head = (info < 0).nonzero()[0].tolist()
        raise ArithmeticError(
            f"the keys of a chunk are too long or not finite for {dtype} tokens at batch row {row}, head {head} "
            f"({int((info < 0).sum())} of {info.numel()} failed): normalise them, raise the ridge, or pass float64"
        )


def _read_backward(
    output_grad: Tensor,
    moment_grads: list[Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    write_weight: Tensor | None,
    plain: Tensor | None,
    filtered: Tensor,
    ridge: Tensor,
    previous_key: Tensor,
    count: Tensor,
    bounds: Tensor,
    rows: Tensor,
    anchors: Tensor,
    last_upper: Tensor,
    power: int,
    interval: int,
) -> list[Tensor]:
    """Gradients of query, key, value, write_weight, plain, filtered, ridge and the initial moments, in this order.

    `moment_grads` are those of the final moments and, chunk-causally, of the frozen ones; none where nobody used them.
    Gradients of what was not given are empty.

    Raises:
        RuntimeError: the forward pass kept nothing: it was captured in a graph where no input required a gradient.
    """
    if anchors.numel() == 0:
        raise RuntimeError(
            "this graph was captured from inputs that require no gradient and cannot be differentiated: "
            "capture it from inputs that require one"
        )
    call = _describe(query, value, power, interval, bounds, count)
    call.backward, call.keep_anchors, call.keep_rows = True, True, rows.numel() > 0
    _point_to_inputs(call, query, key, value, write_weight, plain, filtered, ridge)
    call.point(previous_key=previous_key, rows=rows, anchors=anchors, last_upper=last_upper, output_grad=output_grad)
    for name, tensor in zip(MOMENTS_AFTER, moment_grads, strict=False):
        call.point(**{f"{name}_grad": tensor})
    optional = [value.new_empty(0) if tensor is None else torch.empty_like(tensor) for tensor in (write_weight, plain)]
    of_tokens = [*map(torch.empty_like, (query, key, value)), *optional, torch.empty_like(filtered)]
    _expect_large(*of_tokens)
    of_ridge = ridge.new_empty(call.sequences, call.heads)
    of_moments = _initial_grads(previous_key, value)
    names = ("query", "key", "value", "write_weight", "plain", "filtered", "ridge", "gram", "lag", "moment", "previous")
    for name, tensor in zip(names, (*of_tokens, of_ridge, *of_moments), strict=True):
        call.point(**{f"{name}_grad": tensor})
    work_through(call)
    for grad in moment_grads[::3]:  # the kernels take a Gram matrix's gradient for symmetric; a caller's may not be
        of_moments[0] += (grad - grad.mT) / 2
    return [*of_tokens, of_ridge.sum(dim=0), *of_moments]


_read_backward_node = torch.library.custom_op(
    "echo_ska::native_read_backward", _read_backward, mutates_args=(), device_types="cpu"
)


@_read_backward_node.register_fake
def _(
    output_grad: Tensor,
    moment_grads: list[Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    write_weight: Tensor | None,
    plain: Tensor | None,
    filtered: Tensor,
    ridge: Tensor,
    previous_key: Tensor,
    count: Tensor,
    bounds: Tensor,
    rows: Tensor,
    anchors: Tensor,
    last_upper: Tensor,
    power: int,
    interval: int,
) -> list[Tensor]:
    optional = [value.new_empty(0) if tensor is None else torch.empty_like(tensor) for tensor in (write_weight, plain)]
    of_tokens = [*map(torch.empty_like, (query, key, value)), *optional, torch.empty_like(filtered)]
    return [*of_tokens, torch.empty_like(ridge), *_initial_grads(previous_key, value)]


def _initial_grads(previous_key: Tensor, value: Tensor) -> list[Tensor]:
    """Room for the gradients of the initial gram, lag and value moments and of the key before the first."""
    sequences, heads, rank = previous_key.shape
    shapes = [(rank, rank), (rank, rank), (value.shape[-1], rank), (rank,)]
    return [previous_key.new_empty(sequences, heads, *shape) for shape in shapes]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, power, interval, _, _, _ = inputs
    query, key, value, write_weight, plain, filtered, ridge, _, _, _, previous_key, count, bounds = tensors
    given = (query, key, value, write_weight, plain, filtered, ridge, previous_key, count, bounds)
    ctx.save_for_backward(*given, *output[7:])
    ctx.power, ctx.interval = power, interval
    ctx.moments = [(moment.shape, moment.device) for moment in output[1 : 7 if interval else 4]]
    ctx.set_materialize_grads(False)  # zeros for what is kept would double it


def _gradients(
    compute: Callable[..., list[Tensor]], ctx: Any, saved: tuple[Any, ...], grads: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    output_grad = torch.zeros_like(saved[2]) if grads[0] is None else grads[0]
    moment_grads = [
        torch.zeros(shape, device=device, dtype=torch.float64) if grad is None else grad
        for (shape, device), grad in zip(ctx.moments, grads[1:], strict=False)
        if any(grad is not None for grad in grads[1:])
    ]
    given = (output_grad.contiguous(), [grad.contiguous() for grad in moment_grads], *saved)
    found: list[Tensor | None] = [*compute(*given, ctx.power, ctx.interval)]
    for place in (3, 4):  # write_weight, plain
        if saved[place] is None:
            found[place] = None
    return *found, None, None, None, None, None, None, None


_read_node.register_autograd(
    lambda ctx, *grads: _gradients(_read_backward_node, ctx, ctx.saved_tensors, grads), setup_context=_save
)
_read_backward_node.register_autograd(refuse_second_derivative)


class _EagerRead(torch.autograd.Function):
    """The same operator without torch's dispatcher, which takes as long as the reads of twenty tokens."""

    forward = staticmethod(_read)
    setup_context = staticmethod(_save)

    backward = staticmethod(first_derivatives(functools.partial(_gradients, _read_backward)))


def native_read(*arguments: Any) -> Results:
    """`_read` with gradients: one node where a graph is captured, else at the least cost."""
    captured = torch.compiler.is_compiling() or type(arguments[0]) is not Tensor  # a tensor of torch.export, for one
    found: Results = _read_node(*arguments) if captured else _EagerRead.apply(*arguments)
    return found


def kept_bytes(query: Tensor, power: int) -> int:
    """What a call with these queries [B, T, H, r] keeps for its backward pass unless it recomputes, without anchors."""
    size = 8 if query.dtype == torch.float64 else 4
    return query.numel() * (power + 1) * size


def segment_starts(begin: int, end: int, count: int, interval: int) -> list[int]:
    """The first tokens of the segments of a sequence that has `count` tokens behind it."""
    starts = []
    while begin < end:
        starts.append(begin)
        length = segment_length(count, interval)
        begin, count = begin + length, count + length
    return starts


def segment_length(count: int, interval: int) -> int:
    """Tokens of the segment behind `count` tokens: whole chunks, or whole windows of a chunk-causal read."""
    longest = min(SEGMENT_LENGTH, max(FIRST_SEGMENT_LENGTH, count))
    if not interval:
        return longest // CHUNK_SIZE * CHUNK_SIZE
    return interval if interval >= WHOLE_WINDOW else interval * min(MOST_WINDOWS, longest // interval)


def most_segments(tokens: int, sequences: int, interval: int) -> int:
    """No fewer than the segments of sequences that have so many tokens together, whatever stands before each."""
    full = segment_length(SEGMENT_LENGTH, interval)
    # After as many segments as the first `full` tokens take behind nothing, all are full.
    return tokens // full + sequences * len(segment_starts(0, full, 0, interval))


def _describe(query: Tensor, value: Tensor, power: int, interval: int, bounds: Tensor, count: Tensor) -> Call:
    """The sizes of a call and its segments."""
    batch, time, heads, rank = query.shape
    edges, counts = bounds.tolist(), count.tolist()
    segments: list[int] = []
    first, longest = [0], 1
    for begin, end, before in zip(edges[:-1], edges[1:], counts, strict=True):
        starts = segment_starts(begin, end, before, interval)
        longest = max([longest, *(b - a for a, b in itertools.pairwise([*starts, end]))])
        segments += starts
        first.append(len(segments))
    call = Call(
        is_double=query.dtype == torch.float64,
        tokens=batch * time,
        sequences=len(counts),
        heads=heads,
        rank=rank,
        head_dim=value.shape[-1],
        power=power,
        interval=interval,
        chunk=CHUNK_SIZE,
        longest_segment=longest,
        most_windows=MOST_WINDOWS if interval else SEGMENT_LENGTH // CHUNK_SIZE,
    )
    call.point(bounds=bounds, segments=torch.tensor(segments or [0], device="cpu"))
    call.point(segment_first=torch.tensor(first, device="cpu"))
    return call


def _point_to_inputs(
    call: Call,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    write_weight: Tensor | None,
    plain: Tensor | None,
    filtered: Tensor,
    ridge: Tensor,
) -> None:
    call.point(query=query, key=key, value=value, write_weight=write_weight)
    call.point(plain=plain, filtered=filtered, ridge=ridge)


def _expect_large(*tensors: Tensor) -> None:
    """Take unwritten memory in large pages, where there is much of it and the system has them."""
    for tensor in tensors:
        if tensor.nbytes >= LARGE_BYTES:
            library().echo_ska_expect_large(tensor.data_ptr(), tensor.nbytes)


def _results(
    query: Tensor,
    value: Tensor,
    gram: Tensor,
    lag_moment: Tensor,
    value_moment: Tensor,
    power: int,
    interval: int,
    keep_rows: bool,
    keep_anchors: bool,
) -> Results:
    """What the forward pass returns, unwritten."""
    batch, time, heads, rank = query.shape
    sequences = gram.shape[0]
    call = Call(is_double=query.dtype == torch.float64, rank=rank, head_dim=value.shape[-1], power=power)
    rows_frozen = sequences if interval else 0
    segments = most_segments(batch * time, sequences, interval)
    row_size, anchor_size = library().echo_ska_row_size(call), library().echo_ska_anchor_size(call)
    return (
        torch.empty_like(value),
        torch.empty_like(gram),
        torch.empty_like(lag_moment),
        torch.empty_like(value_moment),
        gram.new_empty(rows_frozen, *gram.shape[1:]),
        gram.new_empty(rows_frozen, *lag_moment.shape[1:]),
        gram.new_empty(rows_frozen, *value_moment.shape[1:]),
        value.new_empty(heads * batch * time * row_size if keep_rows else 0),
        value.new_empty(segments * heads * anchor_size if keep_anchors else 0),
        gram.new_empty(sequences if keep_anchors else 0, heads, rank, rank),
    )
