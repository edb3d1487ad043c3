"""Chunk-parallel PyTorch: all tokens of a chunk, all chunks and all heads at once."""

from __future__ import annotations

import torch
from torch import Tensor

from echo_ska.algebra import SufficientStatistics, accumulator_dtype, weighted
from echo_ska.ops.arguments import Arguments
from echo_ska.ops.chunk_read import read_chunks
from echo_ska.ops.layout import ChunkLayout
from echo_ska.ops.state import RecurrentState, choose_rows

DEFAULT_CHUNK_SIZE = 32


def chunked_attention(arguments: Arguments, chunk_size: int | None = None) -> tuple[Tensor, RecurrentState]:
    """The same function as `recurrent_attention`, parallel in time.

    Statistics are accumulated and factored in the accumulator's dtype; tokens are processed in float64 if the
    inputs are, else in float32.

    Args:
        arguments: a checked call with at least one token.
        chunk_size: tokens a chunk for the exact causal read (other reads have their own chunks), or None for the
            default. It changes the speed and the rounding, never the function.

    Returns:
        The output [B, T, H, P] in the compute dtype and the state after the last token of each sequence.
    """
    start = arguments.start()
    layout = _layout(arguments, start, chunk_size or DEFAULT_CHUNK_SIZE)
    compute = torch.float64 if arguments.value.dtype == torch.float64 else torch.float32
    accumulator = accumulator_dtype(arguments.key.device)

    weight = None if arguments.write_weight is None else arguments.write_weight.to(compute)
    key, value = weighted(arguments.key.to(compute), arguments.value.to(compute), weight)
    previous_key = _previous_keys(layout, key, start.statistics.previous_key.to(compute))
    x, z, u = layout.to_chunks(key), layout.to_chunks(previous_key), layout.to_chunks(value)
    x_sum, z_sum, u_sum = x.to(accumulator), z.to(accumulator), u.to(accumulator)
    initial = start.statistics
    terms = {
        "gram": (initial.gram, x_sum.mT @ x_sum),
        "lag_moment": (initial.lag_moment, x_sum.mT @ z_sum),
        "value_moment": (initial.value_moment, u_sum.mT @ x_sum),
    }
    before: dict[str, Tensor] = {}  # the sums before each chunk, [C, ...]
    after: dict[str, Tensor] = {}  # the sums after each sequence, [N, ...]
    for name, (first, chunk_sums) in terms.items():
        before[name], after[name] = layout.prefix_sums(first, chunk_sums)
    final = _advanced(layout, key, initial, layout.lengths, after)

    frozen, own_tokens = None, {}
    if not arguments.causal:
        rows = layout.sequence_of_chunk.to(key.device)
        before = {name: total[rows] for name, total in after.items()}
    elif arguments.refresh_interval is None:
        own_tokens = {"key": x, "previous_key": z, "value": u}
    else:
        before, frozen = _freeze(layout, key, start, before, final)
    output = read_chunks(
        layout.to_chunks(arguments.query.to(compute)),
        **before,
        **own_tokens,
        batch_rows=layout.sequence_of_chunk,
        ridge=arguments.ridge[:, None, None],
        gain=arguments.gain[:, None, None],
        scale=arguments.scale[:, None, None],
        power=arguments.power,
        blend=None if arguments.blend is None else layout.to_chunks(arguments.blend.to(compute)),
    )
    position = start.position + (final.count - initial.count)
    return layout.from_chunks(output), RecurrentState(final, frozen, position)


def _layout(arguments: Arguments, start: RecurrentState, chunk_size: int) -> ChunkLayout:
    batch, time = arguments.query.shape[:2]
    offsets = [0] * arguments.num_sequences
    if arguments.refresh_interval is not None:
        chunk_size = arguments.refresh_interval
        if arguments.initial_state is not None:
            offsets = [position % chunk_size for position in start.position.tolist()]
    elif not arguments.causal and arguments.cu_seqlens is None:
        chunk_size = time
    else:
        chunk_size = min(chunk_size, time)
    if arguments.cu_seqlens is None and not any(offsets):
        return ChunkLayout.dense(batch, time, chunk_size)
    if arguments.cu_seqlens is None:
        bounds = [row * time for row in range(batch + 1)]
    else:
        bounds = arguments.cu_seqlens
    return ChunkLayout.ragged(batch, time, chunk_size, bounds, offsets)


def _previous_keys(layout: ChunkLayout, key: Tensor, carried_in: Tensor) -> Tensor:
    """The key one token earlier, [B, T, H, r]; `carried_in` [N, H, r] before the first token of each sequence."""
    flat = key.flatten(0, 1)
    shifted = torch.cat([flat.new_zeros(1, *flat.shape[1:]), flat[:-1]])
    rows = [n for n, length in enumerate(layout.lengths) if length > 0]
    starts = torch.tensor([layout.starts[n] for n in rows], device=key.device, dtype=torch.int64)
    return shifted.index_copy(0, starts, carried_in[rows]).view_as(key)


def _advanced(
    layout: ChunkLayout, key: Tensor, initial: SufficientStatistics, lengths: list[int], sums: dict[str, Tensor]
) -> SufficientStatistics:
    """The statistics after the first lengths[n] tokens of each sequence, whose `sums` [N, ...] are known."""
    flat = key.flatten(0, 1).to(initial.gram.dtype)
    device = key.device
    taken = torch.tensor(lengths, device=device)
    starts = torch.tensor(layout.starts, device=device)
    last = flat[(starts + taken - 1).clamp(0, len(flat) - 1)]
    first = flat[starts.clamp(max=len(flat) - 1)]
    any_token = (taken > 0)[:, None, None]
    begins_here = any_token & (initial.count == 0)[:, None, None]
    return SufficientStatistics(
        **sums,
        first_key=torch.where(begins_here, first, initial.first_key),
        previous_key=torch.where(any_token, last, initial.previous_key),
        count=initial.count + taken,
    )


def _freeze(
    layout: ChunkLayout,
    key: Tensor,
    start: RecurrentState,
    before: dict[str, Tensor],
    final: SufficientStatistics,
) -> tuple[dict[str, Tensor], SufficientStatistics]:
    """What the tokens of each chunk read under a refresh interval, and the statistics frozen at the end.

    A chunk that an earlier call began goes on reading what that call froze.
    """
    assert start.frozen_statistics is not None
    sums = dict(before)
    begun = [n for n, (offset, count) in enumerate(zip(layout.offsets, layout.chunks, strict=True)) if offset and count]
    if begun:
        chunks = torch.tensor([layout.first_chunks[n] for n in begun], device=key.device)
        for name, tensor in sums.items():
            sums[name] = tensor.index_copy(0, chunks, getattr(start.frozen_statistics, name)[begun])

    size = layout.chunk_size
    ends = [offset + length for offset, length in zip(layout.offsets, layout.lengths, strict=True)]
    # Tokens of each sequence before its last chunk boundary; below 1, this call has crossed none.
    crossed = [end // size * size - offset for end, offset in zip(ends, layout.offsets, strict=True)]
    at_boundary = {}
    for name, tensor in sums.items():
        rows = [
            getattr(final, name)[n] if end % size == 0 or not layout.chunks[n] else tensor[first + layout.chunks[n] - 1]
            for n, (end, first) in enumerate(zip(ends, layout.first_chunks, strict=True))
        ]
        at_boundary[name] = torch.stack(rows)
    refrozen = _advanced(layout, key, start.statistics, [max(count, 0) for count in crossed], at_boundary)
    is_new = torch.tensor([count > 0 for count in crossed], device=key.device)
    return sums, choose_rows(is_new, refrozen, start.frozen_statistics)
