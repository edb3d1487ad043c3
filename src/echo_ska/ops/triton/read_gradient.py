"""The gradient of a block's reads with respect to its tokens, the statistics held fixed."""
# mypy: allow-untyped-defs

from __future__ import annotations

import dataclasses

import torch
import triton
import triton.language as tl
from torch import Tensor

from echo_ska.ops.triton.cuts import FIELDS, Segment
from echo_ska.ops.triton.launch import OPTIONS, Tokens, dot_precision, dot_warps, padded, rank_slice, value_tile
from echo_ska.ops.triton.read import Points
from echo_ska.ops.triton.tiles import (
    causal,
    load_factor,
    load_matrix,
    load_tokens,
    scores_of,
    store_matrix,
    store_solved,
    store_tokens,
    times_square,
)
from echo_ska.ops.triton.whitening import Basis


@triton.jit
def read_value_gradient_kernel(
    plain,
    filtered,
    blocks,
    points,
    white_key,
    output_grad,
    value_grad,
    first_block,
    heads,
    rank,
    head_dim,
    block_size,
    FIELDS: tl.constexpr,
    POWER: tl.constexpr,
    TOKENS: tl.constexpr,
    SLICE: tl.constexpr,
    VALUE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """From the gradient of y = C point + mask(point X^T) U to that of U, some of its columns."""
    block = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    first = tl.program_id(2) * VALUE
    entry = blocks + (first_block + block) * FIELDS
    begin, count = tl.load(entry), tl.load(entry + 1)
    kept = (block * heads + head) * block_size * rank
    plane = tl.num_programs(0).to(tl.int64) * heads * block_size * rank
    points += kept
    scores = tl.zeros([TOKENS, TOKENS], tl.float32)
    for column in range(0, rank, SLICE):
        point = load_factor(filtered, begin, count, head, heads, TOKENS) * load_matrix(
            points + POWER * plane, block_size, rank, column, TOKENS, SLICE
        )
        if plain is not None:
            point += load_factor(plain, begin, count, head, heads, TOKENS) * load_matrix(
                points, block_size, rank, column, TOKENS, SLICE
            )
        x = load_matrix(white_key + kept, block_size, rank, column, TOKENS, SLICE)
        scores += tl.dot(point, tl.trans(x), input_precision=PRECISION)
    y_grad = load_tokens(output_grad, None, begin, count, head, heads, head_dim, first, TOKENS, VALUE)
    u_grad = tl.dot(tl.trans(causal(scores, TOKENS)), y_grad, input_precision=PRECISION)
    store_tokens(value_grad, u_grad, begin, count, head, heads, head_dim, first, TOKENS, VALUE)


@triton.jit
def output_gradient_kernel(
    value,
    root,
    readout,
    plain,
    filtered,
    blocks,
    points,
    white_key,
    output_grad,
    point_grad,
    white_key_grad,
    plain_grad,
    filtered_grad,
    first_block,
    first_group,
    heads,
    rank,
    head_dim,
    block_size,
    FIELDS: tl.constexpr,
    POWER: tl.constexpr,
    OWN: tl.constexpr,
    TOKENS: tl.constexpr,
    RANK: tl.constexpr,
    SLICE: tl.constexpr,
    VALUE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """From the gradient of y = C point + mask(point X^T) U to those of point, X and the coefficients of point."""
    block = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    entry = blocks + (first_block + block) * FIELDS
    begin, count = tl.load(entry), tl.load(entry + 1)
    basis = (tl.load(entry + 3) - first_group) * heads + head
    kept = (block * heads + head) * block_size * rank
    plane = tl.num_programs(0).to(tl.int64) * heads * block_size * rank
    points += kept
    white_key += kept
    white_key_grad += kept

    gradient = tl.zeros([TOKENS, RANK], tl.float32)
    scores_grad = tl.zeros([TOKENS, TOKENS], tl.float32)
    for first in range(0, head_dim, VALUE):
        y_grad = load_tokens(output_grad, None, begin, count, head, heads, head_dim, first, TOKENS, VALUE)
        rows = load_matrix(readout + (basis * head_dim + first) * rank, head_dim - first, rank, 0, VALUE, RANK)
        gradient += tl.dot(y_grad, rows, input_precision=PRECISION)
        if OWN:
            u = load_tokens(value, root, begin, count, head, heads, head_dim, first, TOKENS, VALUE)
            scores_grad += tl.dot(y_grad, tl.trans(u), input_precision=PRECISION)
    if OWN:
        scores_grad = causal(scores_grad, TOKENS)
        x = load_matrix(white_key, block_size, rank, 0, TOKENS, RANK)
        gradient += tl.dot(scores_grad, x, input_precision=PRECISION)
        scores_grad = tl.trans(scores_grad)
        for column in range(0, rank, SLICE):
            part = load_factor(filtered, begin, count, head, heads, TOKENS) * load_matrix(
                points + POWER * plane, block_size, rank, column, TOKENS, SLICE
            )
            if plain is not None:
                part += load_factor(plain, begin, count, head, heads, TOKENS) * load_matrix(
                    points, block_size, rank, column, TOKENS, SLICE
                )
            x_grad = tl.dot(scores_grad, part, input_precision=PRECISION)
            store_matrix(white_key_grad, x_grad, block_size, rank, column, TOKENS, SLICE)
    store_matrix(point_grad + kept, gradient, block_size, rank, 0, TOKENS, RANK)
    slot = tl.arange(0, TOKENS)
    place = (begin * heads + head) + slot * heads
    point = load_matrix(points + POWER * plane, block_size, rank, 0, TOKENS, RANK)
    tl.store(filtered_grad + place, tl.sum(gradient * point, axis=1), mask=slot < count)
    if plain is not None:
        point = load_matrix(points, block_size, rank, 0, TOKENS, RANK)
        tl.store(plain_grad + place, tl.sum(gradient * point, axis=1), mask=slot < count)


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
class TokenGradients:
    """Gradients of the tokens, [T, H, ...]; those of the weighted key, the key before it and the weighted value float32."""

    query: Tensor
    key: Tensor
    previous_key: Tensor
    value: Tensor
    plain: Tensor | None
    filtered: Tensor

    @classmethod
    def like(cls, tokens: Tokens, plain: Tensor | None, filtered: Tensor) -> TokenGradients:
        """Unwritten ones."""
        return cls(
            query=torch.empty_like(tokens.query),
            key=torch.empty_like(tokens.key, dtype=torch.float32),
            previous_key=torch.empty_like(tokens.key, dtype=torch.float32),
            value=torch.empty_like(tokens.value, dtype=torch.float32),
            plain=None if plain is None else torch.empty_like(plain),
            filtered=torch.empty_like(filtered),
        )


@dataclasses.dataclass(frozen=True)
class ReadGradient:
    """What one segment's reads leave for its tokens and statistics; float32, whitened.

    Attributes:
        rights: the solved gradients behind p_0 to p_K, like `Points.points`.
        key, previous_key: of X and X_prev, like those of `Points`; empty unless a token reads its own block.
    """

    rights: Tensor
    key: Tensor
    previous_key: Tensor


def read_gradient(
    tokens: Tokens,
    segment: Segment,
    basis: Basis,
    plain: Tensor | None,
    filtered: Tensor,
    power: int,
    solved: Points,
    output_grad: Tensor,
    gradients: TokenGradients,
    *,
    own: bool,
) -> ReadGradient:
    """The gradients of a segment's reads; those of query, coefficients and, if `own`, values go to `gradients`."""
    rank, heads, tile = tokens.rank, tokens.heads, segment.cuts.tile
    point_grad = torch.empty_like(solved.points[0])
    found = ReadGradient(*(torch.empty_like(t) for t in (solved.points, solved.key, solved.previous_key)))
    sizes = (heads, rank, segment.cuts.block_size)
    shared = {
        "POWER": power,
        "TOKENS": tile,
        "SLICE": rank_slice(rank),
        "PRECISION": dot_precision(tokens.key.device),
        "num_warps": dot_warps(tile, padded(rank)),
        **OPTIONS,
    }
    grid = (segment.num_blocks, heads)
    output_gradient_kernel[grid](
        tokens.value,
        tokens.root,
        basis.readout,
        plain,
        filtered,
        segment.cuts.blocks,
        solved.points,
        solved.key,
        output_grad,
        point_grad,
        found.key,
        gradients.plain,
        gradients.filtered,
        segment.first_block,
        segment.begin,
        heads,
        rank,
        tokens.head_dim,
        segment.cuts.block_size,
        FIELDS=FIELDS,
        OWN=own,
        RANK=padded(rank),
        VALUE=value_tile(tokens.head_dim, 32),
        **shared,
    )
    points_gradient_kernel[grid](
        basis.whitener,
        basis.operator,
        plain,
        filtered,
        segment.cuts.blocks,
        solved.key,
        solved.previous_key,
        solved.solve_rows,
        point_grad,
        found.rights,
        gradients.query,
        segment.first_block,
        segment.begin,
        *sizes,
        FIELDS=FIELDS,
        OWN=own,
        RANK=padded(rank),
        **shared,
    )
    if own:
        value = value_tile(tokens.head_dim)
        read_value_gradient_kernel[(*grid, triton.cdiv(tokens.head_dim, value))](
            plain,
            filtered,
            segment.cuts.blocks,
            solved.points,
            solved.key,
            output_grad,
            gradients.value,
            segment.first_block,
            heads,
            rank,
            tokens.head_dim,
            segment.cuts.block_size,
            FIELDS=FIELDS,
            VALUE=value,
            **shared,
        )
        own_gradient_kernel[grid](
            solved.points,
            solved.key,
            solved.previous_key,
            found.key,
            found.previous_key,
            found.rights,
            *sizes,
            RANK=padded(rank),
            **shared,
        )
    return found
