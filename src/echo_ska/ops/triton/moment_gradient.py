"""The gradient with respect to the moments that a group reads."""
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from echo_ska.ops.triton.call import Call, padded
from echo_ska.ops.triton.cuts import FIELDS, Segment
from echo_ska.ops.triton.points import Points
from echo_ska.ops.triton.tiles import load_factor, load_matrix, load_tokens, store_matrix, times_square
from echo_ska.ops.triton.whitening import Basis

ROWS = 32  # rows of a moment's gradient that one program works on


@triton.jit
def square_gradient_kernel(
    left,
    right,
    edges,
    gradient,
    plane,
    first_row,
    heads,
    rank,
    moment_rows,
    block_size,
    NEGATIVE: tl.constexpr,
    POINTS: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    RANK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """+- sum left_j^T right_j over the blocks of a group and j < POINTS: of the whitened Gram matrix or lag moment."""
    group = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    first = tl.program_id(2) * ROWS
    plane = tl.cast(plane, tl.int64)  # some planes further than 32 bits count
    begin, end = tl.load(edges + group), tl.load(edges + group + 1)
    total = tl.zeros([ROWS, RANK], tl.float32)
    for block in range(begin, end):
        kept = (block * heads + head) * block_size * rank
        for point in range(POINTS):
            a = load_matrix(left + point * plane + kept, block_size, rank, first, TOKENS, ROWS)
            b = load_matrix(right + point * plane + kept, block_size, rank, 0, TOKENS, RANK)
            total += tl.dot(tl.trans(a), b, input_precision=PRECISION)
    if NEGATIVE:
        total = -total
    place = ((group * heads + head) * moment_rows + first_row + first) * rank
    store_matrix(gradient + place, total, rank - first, rank, 0, ROWS, RANK)


@triton.jit
def value_moment_gradient_kernel(
    points,
    output_grad,
    plain,
    filtered,
    blocks,
    edges,
    gradient,
    plane,
    first_block,
    first_row,
    heads,
    rank,
    head_dim,
    moment_rows,
    block_size,
    FIELDS: tl.constexpr,
    POWER: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    RANK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """sum y_bar^T point over the blocks of a group: of the whitened value moment, some of its rows."""
    group = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    first = tl.program_id(2) * ROWS
    plane = tl.cast(plane, tl.int64)  # some planes further than 32 bits count
    begin, end = tl.load(edges + group), tl.load(edges + group + 1)
    total = tl.zeros([ROWS, RANK], tl.float32)
    for block in range(begin, end):
        entry = blocks + (first_block + block) * FIELDS
        token, count = tl.load(entry), tl.load(entry + 1)
        kept = (block * heads + head) * block_size * rank
        point = load_matrix(points + POWER * plane + kept, block_size, rank, 0, TOKENS, RANK)
        point *= load_factor(filtered, token, count, head, heads, TOKENS)
        if plain is not None:
            first_point = load_matrix(points + kept, block_size, rank, 0, TOKENS, RANK)
            point += load_factor(plain, token, count, head, heads, TOKENS) * first_point
        y_grad = load_tokens(output_grad, None, token, count, head, heads, head_dim, first, TOKENS, ROWS)
        total += tl.dot(tl.trans(y_grad), point, input_precision=PRECISION)
    place = ((group * heads + head) * moment_rows + first_row + first) * rank
    store_matrix(gradient + place, total, head_dim - first, rank, 0, ROWS, RANK)


@triton.jit
def unwhiten_kernel(
    whitener,
    gradient,
    heads,
    rank,
    moment_rows,
    LEFT: tl.constexpr,
    ROWS: tl.constexpr,
    RANK: tl.constexpr,
    SLICE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """In place: D L^-1 for some rows of D, or if LEFT, L^-T D for some columns of its two square parts."""
    row = tl.program_id(0).to(tl.int64) * heads + tl.program_id(1)
    first = tl.program_id(2) * ROWS
    gradient += row * moment_rows * rank
    whitener += row * rank * rank
    if LEFT:
        for _ in range(2):
            total = tl.zeros([RANK, ROWS], tl.float32)
            for inner in range(0, rank, SLICE):
                a = load_matrix(whitener + inner * rank, rank - inner, rank, 0, SLICE, RANK)
                b = load_matrix(gradient + inner * rank, rank - inner, rank, first, SLICE, ROWS)
                total += tl.dot(tl.trans(a), b, input_precision=PRECISION)
            tl.debug_barrier()  # all is read before it is written over
            store_matrix(gradient, total, rank, rank, first, RANK, ROWS)
            gradient += rank * rank
    else:
        gradient += first * rank
        rows = moment_rows - first
        total = times_square(gradient, whitener, rows, rank, False, ROWS, RANK, SLICE, PRECISION)
        tl.debug_barrier()
        store_matrix(gradient, total, rows, rank, 0, ROWS, RANK)


def moment_gradient(
    call: Call, segment: Segment, basis: Basis, solved: Points, rights: Tensor, output_grad: Tensor
) -> Tensor:
    """The gradient of the stacked moments that each group of the segment read, float32, [groups, H, 2 r + P, r]."""
    heads, rank, rows, tile = call.heads, call.rank, call.moment_rows, segment.cuts.tile
    groups, size, plane = segment.num_groups, segment.cuts.block_size, solved.points[0].numel()
    gradient = basis.whitener.new_empty(groups, heads, rows, rank)
    edges = segment.group_edges().to(gradient.device)
    part = min(padded(rank), ROWS)
    unwhitening = {"RANK": padded(rank)} | call.tiles(part)
    shared = {name: value for name, value in unwhitening.items() if name != "SLICE"}
    pairs = [(rights, solved.points, 0, True, call.power + 1)]
    if call.power:
        pairs.append((solved.points, rights[1:], rank, False, call.power))
    else:
        gradient[:, :, rank : 2 * rank] = 0.0
    for left, right, first_row, negative, points in pairs:
        square_gradient_kernel[(groups, heads, triton.cdiv(rank, part))](
            left,
            right,
            edges,
            gradient,
            plane,
            first_row,
            heads,
            rank,
            rows,
            size,
            NEGATIVE=negative,
            POINTS=points,
            TOKENS=tile,
            ROWS=part,
            **shared,
        )
    value_part = min(padded(call.head_dim), ROWS)
    value_moment_gradient_kernel[(groups, heads, triton.cdiv(call.head_dim, value_part))](
        solved.points,
        output_grad,
        call.plain,
        call.filtered,
        segment.cuts.blocks,
        edges,
        gradient,
        plane,
        segment.first_block,
        2 * rank,
        heads,
        rank,
        call.head_dim,
        rows,
        size,
        FIELDS=FIELDS,
        POWER=call.power,
        TOKENS=tile,
        ROWS=value_part,
        **shared,
    )
    for from_left, length in ((True, rank), (False, rows)):
        unwhiten_kernel[(groups, heads, triton.cdiv(length, part))](
            basis.whitener, gradient, heads, rank, rows, LEFT=from_left, ROWS=part, **unwhitening
        )
    return gradient
