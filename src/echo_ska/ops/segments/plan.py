"""Sequences cut into segments: what is read together, in which order, and where its tokens lie."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Segment:
    """Consecutive tokens of each of some rows: `chunks` chunks of `chunk_size` slots a row.

    Attributes:
        rows: how many rows of the block have tokens here; its first ones, since rows stand longest first.
        chunks, chunk_size: slots are chunks * chunk_size a row.
        begin: tokens of each row before the segment, its lead not counted.
        is_lead: the segment holds the rows' leads (`SegmentPlan.leads`) instead, one chunk.
    """

    rows: int
    chunks: int
    chunk_size: int
    begin: int
    is_lead: bool = False

    @property
    def slots(self) -> int:
        return self.chunks * self.chunk_size


@dataclasses.dataclass(frozen=True)
class Block:
    """Rows first_row to first_row + rows - 1 of the plan, which go through their segments together."""

    first_row: int
    rows: int
    segments: tuple[Segment, ...]

    @property
    def members(self) -> slice:
        return slice(self.first_row, self.first_row + self.rows)


@dataclasses.dataclass(frozen=True)
class SegmentPlan:
    """How the sequences of a call are cut.

    Rows are the sequences that have tokens, longest first; rows of about equal length form a block, so that little
    is padded and the working set of a segment stays near the cache.

    Attributes:
        order: the sequence of each row.
        starts: the first token of each row, (batch row, time).
        lengths: tokens of each row.
        leads: tokens of each row before the first segment that is aligned with the others; all zero in most calls.
        blocks: in order of rows.
        is_dense: rows are the batch rows and no slot is empty.
        at_once: as in `Cut`.
    """

    order: tuple[int, ...]
    starts: tuple[tuple[int, int], ...]
    lengths: tuple[int, ...]
    leads: tuple[int, ...]
    blocks: tuple[Block, ...]
    is_dense: bool
    at_once: bool

    @property
    def slots(self) -> int:
        """Slots of all segments together."""
        return sum(segment.rows * segment.slots for block in self.blocks for segment in block.segments)

    @property
    def anchors(self) -> int:
        """Rows of all segments together."""
        return sum(segment.rows for block in self.blocks for segment in block.segments)

    @property
    def chunks(self) -> int:
        """Chunks of all rows of all segments together."""
        return sum(segment.rows * segment.chunks for block in self.blocks for segment in block.segments)


@dataclasses.dataclass(frozen=True)
class Cut:
    """The lengths that a plan is made with.

    Attributes:
        chunk_size: tokens a chunk.
        segment_tokens: about how many tokens a segment holds at most; it holds one chunk at least.
        block_rows: how many rows a block holds at most.
        interval: chunks start at multiples of it (a refresh interval), counted from the end of the leads.
        at_once: read all chunks of a segment at once, else one after the other.
    """

    chunk_size: int
    segment_tokens: int
    block_rows: int
    interval: int = 1
    at_once: bool = True


def dense_plan(batch: int, time: int, cut: Cut) -> SegmentPlan:
    """Every batch row from its first token on."""
    return _plan(tuple((row, 0) for row in range(batch)), (time,) * batch, (0,) * batch, cut, True)


def ragged_plan(
    starts: Sequence[tuple[int, int]], lengths: Sequence[int], leads: Sequence[int], cut: Cut
) -> SegmentPlan:
    """Sequences of any length, each with a lead of its own (0 for none)."""
    return _plan(tuple(starts), tuple(lengths), tuple(leads), cut, False)


@functools.lru_cache(maxsize=64)
def _plan(
    starts: tuple[tuple[int, int], ...], lengths: tuple[int, ...], leads: tuple[int, ...], cut: Cut, is_dense: bool
) -> SegmentPlan:
    rest = [length - lead for length, lead in zip(lengths, leads, strict=True)]
    order = sorted((n for n, length in enumerate(lengths) if length > 0), key=lambda n: -rest[n])
    rest = [rest[n] for n in order]
    blocks = []
    first = 0
    while first < len(order):
        rows = min(len(order) - first, cut.block_rows)
        members = order[first : first + rows]
        segments = _segments(rest[first : first + rows], [leads[n] for n in members], cut, is_dense)
        blocks.append(Block(first, rows, tuple(segments)))
        first += rows
    return SegmentPlan(
        order=tuple(order),
        starts=tuple(starts[n] for n in order),
        lengths=tuple(lengths[n] for n in order),
        leads=tuple(leads[n] for n in order),
        blocks=tuple(blocks),
        is_dense=is_dense,
        at_once=cut.at_once,
    )


def _segments(rest: list[int], leads: list[int], cut: Cut, is_dense: bool) -> list[Segment]:
    """The segments of one block, whose rows have `rest` tokens after their leads, in falling order."""
    segments = []
    if any(leads):
        segments.append(Segment(len(rest), 1, max(leads), 0, is_lead=True))
    size = cut.chunk_size
    if not is_dense:  # do not pad short sequences to a long chunk
        mean = sum(rest) / len(rest)
        while size >= 2 * max(mean, 4) and size % (2 * cut.interval) == 0:
            size //= 2
    begin = 0
    while rest[0] > begin:
        left = [length - begin for length in rest if length > begin]
        longest = max(1, min(cut.segment_tokens, left[0]) // size)
        chunks = min(longest, -(-sum(left) // (len(left) * size)))
        slots = min(size, left[0])
        segments.append(Segment(len(left), chunks, slots, begin))
        begin += chunks * slots
    return segments
