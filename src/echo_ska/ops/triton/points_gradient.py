"""Back from the points to queries and, where a token reads its own block, to keys."""
# mypy: allow-untyped-defs

from __future__ import annotations

import dataclasses

import torch
import triton
import triton.language as tl
from torch import Tensor

from echo_ska.ops.triton.call import Call, padded
from echo_ska.ops.triton.cuts import FIELDS, Segment
from echo_ska.ops.triton.points import Points
from echo_ska.ops.triton.tiles import (
    causal,
    load_factor,
    load_matrix,
    scores_of,
    store_matrix,
    store_solved,
    store_tokens,
    times_square,
)
from echo_ska.ops.triton.whitening import Basis


@triton.jit
def points_gradient_kernel(
    whitener,
    operator,
    plain,
    filtered,
    blocks,
    white_key,
    white_previous,
    solve_rows,
    point_grad,
    rights,
    query_grad,
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
    """From the gradient of point = plain p_0 + filtered p_K to that of Q, back through p_{j+1} = solve(M_t p_j).

    For p = G~^-1 c the adjoint is c_bar = G~^-1 p_bar, kept in `rights`: `solve` is its own adjoint, and no
    factorisation is differentiated (docs/method.md section 3).
    """
    block = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    entry = blocks + (first_block + block) * FIELDS
    begin, count = tl.load(entry), tl.load(entry + 1)
    basis = ((tl.load(entry + 3) - first_group) * heads + head) * rank * rank
    kept = (block * heads + head) * block_size * rank
    plane = tl.num_programs(0).to(tl.int64) * heads * block_size * rank
    white_key += kept
    white_previous += kept
    solve_rows += kept
    rights += kept + POWER * plane

    gradient = load_matrix(point_grad + kept, block_size, rank, 0, TOKENS, RANK)
    gradient *= load_factor(filtered, begin, count, head, heads, TOKENS)
    for _ in range(POWER):
        store_solved(rights, gradient, solve_rows, block_size, rank, OWN, TOKENS, RANK, SLICE, PRECISION)
        gradient = times_square(rights, operator + basis, block_size, rank, True, TOKENS, RANK, SLICE, PRECISION)
        if OWN:
            scores = causal(scores_of(rights, white_key, block_size, rank, TOKENS, SLICE, PRECISION), TOKENS)
            previous = load_matrix(white_previous, block_size, rank, 0, TOKENS, RANK)
            gradient += tl.dot(scores, previous, input_precision=PRECISION)
        rights -= plane
    if plain is not None:
        straight = load_matrix(point_grad + kept, block_size, rank, 0, TOKENS, RANK)
        gradient += load_factor(plain, begin, count, head, heads, TOKENS) * straight
    store_solved(rights, gradient, solve_rows, block_size, rank, OWN, TOKENS, RANK, SLICE, PRECISION)
    q_grad = times_square(rights, whitener + basis, block_size, rank, False, TOKENS, RANK, SLICE, PRECISION)
    store_tokens(query_grad, q_grad, begin, count, head, heads, rank, 0, TOKENS, RANK)


@triton.jit
def own_gradient_kernel(
    points,
    white_key,
    white_previous,
    white_key_grad,
    white_previous_grad,
    rights,
    heads,
    rank,
    block_size,
    POWER: tl.constexpr,
    TOKENS: tl.constexpr,
    RANK: tl.constexpr,
    SLICE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradients of X (added to what is there) and X_prev, whitened, that a block's solves and steps ask for.

    G~_t grows by x x^T at each token and M_t by x x_prev^T: with c_bar from `rights` and p from `points`, each solve
    adds -(c_bar p^T + p c_bar^T) x, each step c_bar p^T x_prev to the gradient of x and p c_bar^T x to that of x_prev.
    """
    block = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    kept = (block * heads + head) * block_size * rank
    plane = tl.num_programs(0).to(tl.int64) * heads * block_size * rank
    white_key += kept
    white_previous += kept
    points += kept
    rights += kept

    x_grad = load_matrix(white_key_grad + kept, block_size, rank, 0, TOKENS, RANK)
    z_grad = tl.zeros([TOKENS, RANK], tl.float32)
    for index in range(POWER + 1):
        scores = causal(scores_of(rights, white_key, block_size, rank, TOKENS, SLICE, PRECISION), TOKENS)
        solved = load_matrix(points, block_size, rank, 0, TOKENS, RANK)
        x_grad -= tl.dot(tl.trans(scores), solved, input_precision=PRECISION)
        if index > 0:
            before = load_matrix(points - plane, block_size, rank, 0, TOKENS, RANK)
            z_grad += tl.dot(tl.trans(scores), before, input_precision=PRECISION)
        scores = scores_of(points, white_key, block_size, rank, TOKENS, SLICE, PRECISION)
        if index > 0:
            scores -= scores_of(points - plane, white_previous, block_size, rank, TOKENS, SLICE, PRECISION)
        right = load_matrix(rights, block_size, rank, 0, TOKENS, RANK)
        x_grad -= tl.dot(tl.trans(causal(scores, TOKENS)), right, input_precision=PRECISION)
        points += plane
        rights += plane
    store_matrix(white_key_grad + kept, x_grad, block_size, rank, 0, TOKENS, RANK)
    store_matrix(white_previous_grad + kept, z_grad, block_size, rank, 0, TOKENS, RANK)


@dataclasses.dataclass(frozen=True)
class ReadGradient:
    """What a segment's reads ask of its tokens and statistics; float32, whitened.

    Attributes:
        rights: the solved gradients behind p_0 to p_K, like `Points.points`.
        key, previous_key: of X and X_prev, like those of `Points`.
    """

    rights: Tensor
    key: Tensor
    previous_key: Tensor


def points_gradient(
    call: Call,
    segment: Segment,
    basis: Basis,
    solved: Points,
    point_grad: Tensor,
    white_key_grad: Tensor,
    query_grad: Tensor,
) -> ReadGradient:
    """Back from plain p_0 + filtered p_K.

    Args:
        call: the call.
        segment: whose tokens.
        basis: what its groups read.
        solved: its points.
        point_grad: of plain p_0 + filtered p_K, [blocks, H, block_size, r].
        white_key_grad: of X so far, likewise; added to, if a token reads its own block.
        query_grad: written, [T, H, r].
    """
    found = ReadGradient(torch.empty_like(solved.points), white_key_grad, torch.empty_like(solved.previous_key))
    grid, tile = (segment.num_blocks, call.heads), segment.cuts.tile
    sizes = (call.heads, call.rank, segment.cuts.block_size)
    shared = {"POWER": call.power, "TOKENS": tile, "RANK": padded(call.rank)} | call.tiles(tile)
    points_gradient_kernel[grid](
        basis.whitener,
        basis.operator,
        call.plain,
        call.filtered,
        segment.cuts.blocks,
        solved.key,
        solved.previous_key,
        solved.solve_rows,
        point_grad,
        found.rights,
        query_grad,
        segment.first_block,
        segment.begin,
        *sizes,
        FIELDS=FIELDS,
        OWN=call.own,
        **shared,
    )
    if call.own:
        own_gradient_kernel[grid](
            solved.points,
            solved.key,
            solved.previous_key,
            found.key,
            found.previous_key,
            found.rights,
            *sizes,
            **shared,
        )
    return found
