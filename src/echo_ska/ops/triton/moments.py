"""The moments of each block and their running sums."""
# mypy: allow-untyped-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from echo_ska.ops.triton.call import OPTIONS, Call, padded, warps
from echo_ska.ops.triton.cuts import FIELDS, Segment

LEFT_TILE = 64  # rows of a moment that one program sums
UNROLL = 4  # tokens whose loads may be under way together
SCAN_TILE = 512  # entries of the stacked moments that one program scans


@triton.jit
def block_moments_kernel(
    left,
    key,
    root,
    carried,
    blocks,
    moments,
    first_block,
    heads,
    rank,
    left_width,
    first_row,
    moment_rows,
    FIELDS: tl.constexpr,
    SHIFTED: tl.constexpr,
    UNROLL: tl.constexpr,
    LEFT: tl.constexpr,
    RANK: tl.constexpr,
):
    """sum_t left_t x_t^T over the tokens of a block, in float64.

    `left` is read one token earlier if SHIFTED. Token by token: where keys do not span all directions, the rounding of
    a float32 product would add up over the blocks of a long sequence like that of a float32 sum.
    """
    block = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    entry = blocks + (first_block + block) * FIELDS
    begin, count = tl.load(entry), tl.load(entry + 1)
    sequence, opens = tl.load(entry + 2), tl.load(entry + 4)
    row = tl.program_id(2) * LEFT + tl.arange(0, LEFT)
    column = tl.arange(0, RANK)
    place = begin * heads + head
    x_at = key + place * rank + column
    y_at = left + place * left_width + row
    total = tl.zeros([LEFT, RANK], tl.float64)
    first_pair = 0
    if SHIFTED:
        # The key before the block: the carried one where the block opens its sequence, else the last one before it.
        x = tl.load(x_at, mask=column < rank, other=0.0).to(tl.float32)
        carried_at = carried + (sequence * heads + head) * rank + row
        y = tl.load(carried_at, mask=row < tl.where(opens > 0, rank, 0), other=0.0)
        before = tl.load(y_at - heads * rank, mask=row < tl.where(opens > 0, 0, rank), other=0.0).to(tl.float32)
        if root is not None:
            x *= tl.load(root + place)
            before *= tl.load(root + place - heads, mask=opens == 0, other=0.0)
        total += (y + before).to(tl.float64)[:, None] * x.to(tl.float64)[None, :]
        x_at += heads * rank
        place += heads
        first_pair = 1
    for _ in tl.range(first_pair, count, loop_unroll_factor=UNROLL):
        x = tl.load(x_at, mask=column < rank, other=0.0).to(tl.float32)
        y = tl.load(y_at, mask=row < left_width, other=0.0).to(tl.float32)
        if root is not None:
            weight = tl.load(root + place)
            x *= weight
            if SHIFTED:
                weight = tl.load(root + place - heads)
            y *= weight
        total += y.to(tl.float64)[:, None] * x.to(tl.float64)[None, :]
        x_at += heads * rank
        y_at += heads * left_width
        place += heads
    place = ((block * heads + head) * moment_rows + first_row + row[:, None]) * rank + column[None, :]
    tl.store(moments + place, total, mask=(row[:, None] < left_width) & (column[None, :] < rank))


@triton.jit
def scan_kernel(terms, running, edges, first_sequence, heads, size, REVERSE: tl.constexpr, TILE: tl.constexpr):
    """Replace each term by the sum of `running` and the terms before it (after it, if REVERSE) in its sequence.

    `running` ends as the sum of all. The sum is float64 whatever the dtype of the terms.
    """
    sequence = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    entry = tl.program_id(2) * TILE + tl.arange(0, TILE)
    mask = entry < size
    begin, end = tl.load(edges + sequence), tl.load(edges + sequence + 1)
    sums = running + ((first_sequence + sequence) * heads + head) * size + entry
    total = tl.load(sums, mask=mask, other=0.0)
    for step in range(end - begin):
        if REVERSE:
            index = end - 1 - step
        else:
            index = begin + step
        place = terms + (index * heads + head) * size + entry
        term = tl.load(place, mask=mask, other=0.0)
        tl.store(place, total.to(terms.dtype.element_ty), mask=mask)
        total += term.to(tl.float64)
    tl.store(sums, total, mask=mask)


def block_moments(call: Call, segment: Segment) -> Tensor:
    """The stacked moments [x; x_prev; u] x^T of each block of the segment, float64, [blocks, H, 2 r + P, r]."""
    rank, heads, rows = call.rank, call.heads, call.moment_rows
    moments = call.key.new_empty(segment.num_blocks, heads, rows, rank, dtype=torch.float64)
    for left, width, first_row, shifted in (
        (call.key, rank, 0, False),
        (call.key, rank, rank, True),
        (call.value, call.head_dim, 2 * rank, False),
    ):
        tile = min(padded(width), LEFT_TILE)
        block_moments_kernel[(segment.num_blocks, heads, triton.cdiv(width, tile))](
            left,
            call.key,
            call.root,
            call.carried,
            segment.cuts.blocks,
            moments,
            segment.first_block,
            heads,
            rank,
            width,
            first_row,
            rows,
            FIELDS=FIELDS,
            SHIFTED=shifted,
            UNROLL=UNROLL,
            LEFT=tile,
            RANK=padded(rank),
            num_warps=warps(tile),
            **OPTIONS,
        )
    return moments


def scan(terms: Tensor, running: Tensor, edges: Tensor, first_sequence: int, *, reverse: bool) -> None:
    """Exclusive running sums, in place.

    Args:
        terms: [K, H, rows, r], float32 or float64: the K terms of a few sequences, one sequence after the other.
        running: [N, H, rows, r], float64: what each sequence starts from; ends with its terms added.
        edges: the first term of each of those sequences, and K, on the CPU.
        first_sequence: the row of `running` of the first of them.
        reverse: sum from the last term to the first.
    """
    heads, size = terms.shape[1], terms.shape[2] * terms.shape[3]
    scan_kernel[(len(edges) - 1, heads, triton.cdiv(size, SCAN_TILE))](
        terms,
        running,
        edges.to(terms.device),
        first_sequence,
        heads,
        size,
        REVERSE=reverse,
        TILE=SCAN_TILE,
        num_warps=4,
        **OPTIONS,
    )
