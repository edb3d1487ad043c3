"""Reading the values at the points, and back."""
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from echo_ska.ops.triton.call import Call, TokenGradients, padded, value_tile
from echo_ska.ops.triton.cuts import FIELDS, Segment
from echo_ska.ops.triton.points import Points
from echo_ska.ops.triton.tiles import causal, load_factor, load_matrix, load_tokens, store_matrix, store_tokens
from echo_ska.ops.triton.whitening import Basis


@triton.jit
def output_kernel(
    value,
    root,
    readout,
    plain,
    filtered,
    blocks,
    points,
    white_key,
    output,
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
    VALUE: tl.constexpr,
    SLICE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """y = C point + mask(point X^T) U with point = plain p_0 + filtered p_K, of all tokens of a block, some columns."""
    block = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    first = tl.program_id(2) * VALUE
    entry = blocks + (first_block + block) * FIELDS
    begin, count = tl.load(entry), tl.load(entry + 1)
    basis = (tl.load(entry + 3) - first_group) * heads + head
    kept = (block * heads + head) * block_size * rank
    plane = tl.num_programs(0).to(tl.int64) * heads * block_size * rank
    points += kept

    result = tl.zeros([TOKENS, VALUE], tl.float32)
    scores = tl.zeros([TOKENS, TOKENS], tl.float32)
    filter_factor = load_factor(filtered, begin, count, head, heads, TOKENS)
    rows = readout + (basis * head_dim + first) * rank
    for column in range(0, rank, SLICE):
        point = filter_factor * load_matrix(points + POWER * plane, block_size, rank, column, TOKENS, SLICE)
        if plain is not None:
            plain_factor = load_factor(plain, begin, count, head, heads, TOKENS)
            point += plain_factor * load_matrix(points, block_size, rank, column, TOKENS, SLICE)
        part = load_matrix(rows, head_dim - first, rank, column, VALUE, SLICE)
        result += tl.dot(point, tl.trans(part), input_precision=PRECISION)
        if OWN:
            x = load_matrix(white_key + kept, block_size, rank, column, TOKENS, SLICE)
            scores += tl.dot(point, tl.trans(x), input_precision=PRECISION)
    if OWN:
        u = load_tokens(value, root, begin, count, head, heads, head_dim, first, TOKENS, VALUE)
        result += tl.dot(causal(scores, TOKENS), u, input_precision=PRECISION)
    store_tokens(output, result, begin, count, head, heads, head_dim, first, TOKENS, VALUE)


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


def write_output(call: Call, segment: Segment, basis: Basis, solved: Points, output: Tensor) -> None:
    """Read the values at plain p_0 + filtered p_K into output [T, H, P]."""
    value, tile = value_tile(call.head_dim), segment.cuts.tile
    output_kernel[(segment.num_blocks, call.heads, triton.cdiv(call.head_dim, value))](
        call.value,
        call.root,
        basis.readout,
        call.plain,
        call.filtered,
        segment.cuts.blocks,
        solved.points,
        solved.key,
        output,
        segment.first_block,
        segment.begin,
        call.heads,
        call.rank,
        call.head_dim,
        segment.cuts.block_size,
        FIELDS=FIELDS,
        POWER=call.power,
        OWN=call.own,
        TOKENS=tile,
        VALUE=value,
        **call.tiles(tile),
    )


def output_gradient(
    call: Call, segment: Segment, basis: Basis, solved: Points, output_grad: Tensor, gradients: TokenGradients
) -> tuple[Tensor, Tensor]:
    """Back from the output: writes the gradients of the coefficients and, where a token reads its block, of values.

    Returns:
        The gradients of plain p_0 + filtered p_K, and of X (unwritten unless a token reads its block), float32,
        whitened, [blocks, H, block_size, r].
    """
    heads, tile = call.heads, segment.cuts.tile
    point_grad, white_key_grad = solved.points.new_empty(solved.points[0].shape), solved.key.new_empty(solved.key.shape)
    sizes = (heads, call.rank, call.head_dim, segment.cuts.block_size)
    shared = {"FIELDS": FIELDS, "POWER": call.power, "TOKENS": tile} | call.tiles(tile)
    output_gradient_kernel[(segment.num_blocks, heads)](
        call.value,
        call.root,
        basis.readout,
        call.plain,
        call.filtered,
        segment.cuts.blocks,
        solved.points,
        solved.key,
        output_grad,
        point_grad,
        white_key_grad,
        gradients.plain,
        gradients.filtered,
        segment.first_block,
        segment.begin,
        *sizes,
        OWN=call.own,
        RANK=padded(call.rank),
        VALUE=value_tile(call.head_dim, 32),
        **shared,
    )
    if call.own:
        value = value_tile(call.head_dim)
        read_value_gradient_kernel[(segment.num_blocks, heads, triton.cdiv(call.head_dim, value))](
            call.plain,
            call.filtered,
            segment.cuts.blocks,
            solved.points,
            solved.key,
            output_grad,
            gradients.value,
            segment.first_block,
            *sizes,
            VALUE=value,
            **shared,
        )
    return point_grad, white_key_grad
