"""Parallel PyTorch: all tokens of a segment at once, on any device."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from echo_ska.algebra import SufficientStatistics, weighted
from echo_ska.ops.arguments import Arguments
from echo_ska.ops.segments.function import parallel_read
from echo_ska.ops.sequences import coefficients, statistics_after
from echo_ska.ops.state import RecurrentState, choose_rows


def chunked_attention(
    arguments: Arguments, chunk_size: int | None = None, recompute: bool = False, output_final_state: bool = True
) -> tuple[Tensor, RecurrentState | None]:
    """The same function as `recurrent_attention`, parallel in time.

    Statistics are accumulated and factored in the accumulator's dtype; tokens are processed in float64 if the
    inputs are, else in float32.

    Args:
        arguments: a checked call with at least one token.
        chunk_size: tokens a chunk for the exact causal read (other reads have their own chunks), or None for the
            default. It changes the speed and the rounding, never the function.
        recompute: keep nothing per token for the backward pass, which computes it again.
        output_final_state: whether the state is wanted.

    Returns:
        The output [B, T, H, P] in the compute dtype and the state after the last token of each sequence, or None.
    """
    start = arguments.start()
    initial = start.statistics
    compute = torch.float64 if arguments.value.dtype == torch.float64 else torch.float32
    plain, filtered = coefficients(arguments, compute)
    # An empty state's frozen statistics are its statistics: then tokens need no lead.
    frozen = None if arguments.initial_state is None else start.frozen_statistics
    bounds = None if arguments.cu_seqlens is None else torch.tensor(arguments.cu_seqlens, device="cpu")
    output, sums = parallel_read(
        arguments.query,
        arguments.key,
        arguments.value,
        arguments.write_weight,
        plain,
        filtered,
        arguments.ridge,
        (initial.gram, initial.lag_moment, initial.value_moment, initial.previous_key),
        None if frozen is None else (frozen.gram, frozen.lag_moment, frozen.value_moment),
        start.position if frozen is not None else None,
        bounds,
        power=arguments.power,
        causal=arguments.causal,
        refresh_interval=arguments.refresh_interval,
        chunk_size=chunk_size,
        recompute=recompute,
        final_state=output_final_state,
    )
    return output, _final_state(arguments, start, bounds, sums) if output_final_state else None


def _final_state(
    arguments: Arguments, start: RecurrentState, bounds: Tensor | None, sums: tuple[Tensor, Tensor, Tensor]
) -> RecurrentState:
    """The state after the last token, whose gram, lag and value moment are `sums`."""
    initial = start.statistics
    batch, time = arguments.query.shape[:2]
    device = initial.count.device
    if bounds is None:
        rows, starts = torch.arange(batch, device=device), initial.count.new_zeros(batch)
        lengths = torch.full_like(initial.count, time)
    else:
        rows, starts = torch.zeros_like(initial.count), bounds[:-1].to(device)
        lengths = bounds.diff().to(device)
    final = statistics_after(arguments, initial, rows * time + starts, lengths, sums)
    position = start.position + lengths
    frozen = start.frozen_statistics
    if frozen is not None and arguments.refresh_interval is not None:
        # The tokens since the last refresh, at most an interval less one, are taken away again.
        tail = position % arguments.refresh_interval
        refreshed = _without_tail(arguments, final, rows, starts + lengths, torch.minimum(tail, lengths))
        frozen = choose_rows(tail < lengths, refreshed, frozen)
    return RecurrentState(final, frozen, position)


def _without_tail(
    arguments: Arguments, final: SufficientStatistics, rows: Tensor, ends: Tensor, tail: Tensor
) -> SufficientStatistics:
    """`final` without the last tail[n] < refresh_interval tokens of sequence n, which ends before token ends[n]."""
    dtype, width = final.gram.dtype, _widest_tail(arguments, tail)
    back = torch.arange(width + 1, device=ends.device)
    places = (ends[:, None] - 1 - back).clamp(min=0)  # the last token first
    key, value = (tensor.to(dtype).transpose(1, 2) for tensor in _weighted_tokens(arguments, rows[:, None], places))
    inside = (back < tail[:, None])[:, None, :width, None]
    x, u, previous = key[:, :, :width] * inside, value[:, :, :width] * inside, key[:, :, 1:]
    last = tail.clamp(max=width)[:, None, None, None].expand(-1, key.shape[1], 1, key.shape[3])
    return SufficientStatistics(
        gram=final.gram - x.mT @ x,
        lag_moment=final.lag_moment - x.mT @ previous,
        value_moment=final.value_moment - u.mT @ x,
        first_key=final.first_key,
        previous_key=key.gather(2, last).squeeze(2),
        count=final.count - tail,
    )


def _widest_tail(arguments: Arguments, tail: Tensor) -> int:
    """No fewer than the tokens of any tail; a captured graph, which must not ask for values, takes what always is."""
    assert arguments.refresh_interval is not None
    width = min(arguments.refresh_interval - 1, arguments.query.shape[1] - 1)
    if torch.compiler.is_compiling() or type(tail) is not Tensor or tail.numel() == 0:
        return width
    if arguments.cu_seqlens is not None:
        width = min(width, max(end - begin for begin, end in itertools.pairwise(arguments.cu_seqlens)))
    return min(width, int(tail.max()))


def _weighted_tokens(arguments: Arguments, rows: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted key and value of some tokens, [..., H, r] and [..., H, P], in the compute dtype."""
    compute = torch.float64 if arguments.value.dtype == torch.float64 else torch.float32
    weight = None if arguments.write_weight is None else arguments.write_weight[rows, places].to(compute)
    return weighted(arguments.key[rows, places].to(compute), arguments.value[rows, places].to(compute), weight)
