"""The points p_0 to p_K at which each token reads the values."""
# mypy: allow-untyped-defs

from __future__ import annotations

import dataclasses

import torch
import triton
import triton.language as tl
from torch import Tensor

from echo_ska.ops.triton.call import Call, padded
from echo_ska.ops.triton.cuts import FIELDS, Segment
from echo_ska.ops.triton.tiles import (
    causal,
    inverse_factor,
    load_matrix,
    load_previous,
    load_tokens,
    scores_of,
    store_matrix,
    store_solved,
    times_square,
)
from echo_ska.ops.triton.whitening import Basis


@triton.jit
def points_kernel(
    query,
    key,
    root,
    carried,
    whitener,
    operator,
    blocks,
    info,
    points,
    white_key,
    white_previous,
    solve_rows,
    first_block,
    first_group,
    heads,
    rank,
    block_size,
    FIELDS: tl.constexpr,
    POWER: tl.constexpr,
    OWN: tl.constexpr,
    TOKENS: tl.constexpr,
    RANK: tl.constexpr,
    SLICE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """p_0 = solve(Q) to p_K, p_{j+1} = solve(M_t p_j), of all tokens of a block, in the basis of its group.

    If OWN, the tokens of the block up to itself count for each.
    """
    block = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    entry = blocks + (first_block + block) * FIELDS
    begin, count, sequence = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
    basis = ((tl.load(entry + 3) - first_group) * heads + head) * rank * rank
    kept = (block * heads + head) * block_size * rank
    plane = tl.num_programs(0).to(tl.int64) * heads * block_size * rank
    white_key += kept
    white_previous += kept
    solve_rows += kept
    points += kept

    if OWN:
        opens = tl.load(entry + 4)
        x = tl.zeros([TOKENS, RANK], tl.float32)
        z = tl.zeros([TOKENS, RANK], tl.float32)
        for first in range(0, rank, SLICE):
            to_white = tl.trans(load_matrix(whitener + basis, rank, rank, first, RANK, SLICE))
            part = load_tokens(key, root, begin, count, head, heads, rank, first, TOKENS, SLICE)
            x += tl.dot(part, to_white, input_precision=PRECISION)
            part = load_previous(
                key, root, carried, begin, count, opens, sequence, head, heads, rank, first, TOKENS, SLICE
            )
            z += tl.dot(part, to_white, input_precision=PRECISION)
        store_matrix(white_key, x, block_size, rank, 0, TOKENS, RANK)
        store_matrix(white_previous, z, block_size, rank, 0, TOKENS, RANK)
        tl.debug_barrier()
        slot = tl.arange(0, TOKENS)
        gram = scores_of(white_key, white_key, block_size, rank, TOKENS, SLICE, PRECISION)
        gram += tl.where(slot[:, None] == slot[None, :], 1.0, 0.0)
        inverse, failed = inverse_factor(gram, count.to(tl.int32), TOKENS)
        tl.store(info + block * heads + head, failed)
        w = tl.dot(inverse, load_matrix(white_key, block_size, rank, 0, TOKENS, RANK), input_precision=PRECISION)
        store_matrix(solve_rows, w, block_size, rank, 0, TOKENS, RANK)
        tl.debug_barrier()

    point = tl.zeros([TOKENS, RANK], tl.float32)
    for first in range(0, rank, SLICE):
        to_white = tl.trans(load_matrix(whitener + basis, rank, rank, first, RANK, SLICE))
        part = load_tokens(query, None, begin, count, head, heads, rank, first, TOKENS, SLICE)
        point += tl.dot(part, to_white, input_precision=PRECISION)
    store_solved(points, point, solve_rows, block_size, rank, OWN, TOKENS, RANK, SLICE, PRECISION)
    for _ in range(POWER):
        point = times_square(points, operator + basis, block_size, rank, False, TOKENS, RANK, SLICE, PRECISION)
        if OWN:
            scores = causal(scores_of(points, white_previous, block_size, rank, TOKENS, SLICE, PRECISION), TOKENS)
            x = load_matrix(white_key, block_size, rank, 0, TOKENS, RANK)
            point += tl.dot(scores, x, input_precision=PRECISION)
        points += plane
        store_solved(points, point, solve_rows, block_size, rank, OWN, TOKENS, RANK, SLICE, PRECISION)


@dataclasses.dataclass(frozen=True)
class Points:
    """The points of a segment's tokens and what they were solved with; [..., block_size, r], float32, whitened.

    Attributes:
        points: p_0 to p_K, [K + 1, blocks, H, ...].
        key, previous_key, solve_rows: X, X_prev and W = B^-1 X, [blocks, H, ...]; empty unless a token reads its own
            block.
        info: 0, or the first bad minor of the block's own factorisation, int32, [blocks, H].
    """

    points: Tensor
    key: Tensor
    previous_key: Tensor
    solve_rows: Tensor
    info: Tensor


def solve_points(call: Call, segment: Segment, basis: Basis) -> Points:
    """The points p_0 to p_K of every token of the segment, whose groups read `basis`."""
    heads, rank, size = call.heads, call.rank, segment.cuts.block_size
    plane = (segment.num_blocks, heads, size, rank)
    key, previous_key, solve_rows = (basis.whitener.new_empty(plane if call.own else 0) for _ in range(3))
    solved = Points(
        points=basis.whitener.new_empty(call.power + 1, *plane),
        key=key,
        previous_key=previous_key,
        solve_rows=solve_rows,
        info=torch.zeros(segment.num_blocks, heads, device=call.key.device, dtype=torch.int32),
    )
    points_kernel[(segment.num_blocks, heads)](
        call.query,
        call.key,
        call.root,
        call.carried,
        basis.whitener,
        basis.operator,
        segment.cuts.blocks,
        solved.info,
        solved.points,
        solved.key,
        solved.previous_key,
        solved.solve_rows,
        segment.first_block,
        segment.begin,
        heads,
        rank,
        size,
        FIELDS=FIELDS,
        POWER=call.power,
        OWN=call.own,
        TOKENS=segment.cuts.tile,
        RANK=padded(rank),
        **call.tiles(segment.cuts.tile),
    )
    return solved
