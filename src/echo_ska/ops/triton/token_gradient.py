"""The gradient of keys and values, from that of the moments they were summed into."""
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from echo_ska.ops.triton.call import Call, TokenGradients, padded, value_tile
from echo_ska.ops.triton.cuts import FIELDS, Segment
from echo_ska.ops.triton.points_gradient import ReadGradient
from echo_ska.ops.triton.tiles import load_matrix, load_previous, load_tokens, store_tokens, times_square
from echo_ska.ops.triton.whitening import Basis


@triton.jit
def key_gradient_kernel(
    key,
    value,
    root,
    carried,
    whitener,
    blocks,
    gradient,
    white_key_grad,
    white_previous_grad,
    key_grad,
    previous_grad,
    first_block,
    first_group,
    heads,
    rank,
    head_dim,
    moment_rows,
    block_size,
    FIELDS: tl.constexpr,
    OWN: tl.constexpr,
    TOKENS: tl.constexpr,
    RANK: tl.constexpr,
    SLICE: tl.constexpr,
    VALUE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """From the gradient D [2 r + P, r] of sum [x; x_prev; u] x^T to those of x and x_prev.

    If OWN, with what the block's own reads ask of them, turned back from the basis of the group.
    """
    block = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    entry = blocks + (first_block + block) * FIELDS
    begin, count, sequence = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
    row = (tl.load(entry + 3) - first_group) * heads + head
    opens = tl.load(entry + 4)
    kept = (block * heads + head) * block_size * rank
    gram = gradient + row * moment_rows * rank
    lag = gram + rank * rank
    moment = lag + rank * rank
    x_grad = tl.zeros([TOKENS, RANK], tl.float32)
    z_grad = tl.zeros([TOKENS, RANK], tl.float32)
    if OWN:
        whitener += row * rank * rank
        x_grad += times_square(white_key_grad + kept, whitener, block_size, rank, False, TOKENS, RANK, SLICE, PRECISION)
        z_grad += times_square(
            white_previous_grad + kept, whitener, block_size, rank, False, TOKENS, RANK, SLICE, PRECISION
        )
    for first in range(0, rank, SLICE):
        x = load_tokens(key, root, begin, count, head, heads, rank, first, TOKENS, SLICE)
        across = load_matrix(gram + first * rank, rank - first, rank, 0, SLICE, RANK)
        down = tl.trans(load_matrix(gram, rank, rank, first, RANK, SLICE))
        x_grad += tl.dot(x, across + down, input_precision=PRECISION)
        down = tl.trans(load_matrix(lag, rank, rank, first, RANK, SLICE))
        z_grad += tl.dot(x, down, input_precision=PRECISION)
        z = load_previous(key, root, carried, begin, count, opens, sequence, head, heads, rank, first, TOKENS, SLICE)
        across = load_matrix(lag + first * rank, rank - first, rank, 0, SLICE, RANK)
        x_grad += tl.dot(z, across, input_precision=PRECISION)
    store_tokens(previous_grad, z_grad, begin, count, head, heads, rank, 0, TOKENS, RANK)
    for first in range(0, head_dim, VALUE):
        u = load_tokens(value, root, begin, count, head, heads, head_dim, first, TOKENS, VALUE)
        across = load_matrix(moment + first * rank, head_dim - first, rank, 0, VALUE, RANK)
        x_grad += tl.dot(u, across, input_precision=PRECISION)
    store_tokens(key_grad, x_grad, begin, count, head, heads, rank, 0, TOKENS, RANK)


@triton.jit
def value_gradient_kernel(
    key,
    root,
    blocks,
    gradient,
    value_grad,
    first_block,
    first_group,
    heads,
    rank,
    head_dim,
    moment_rows,
    FIELDS: tl.constexpr,
    OWN: tl.constexpr,
    TOKENS: tl.constexpr,
    SLICE: tl.constexpr,
    VALUE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """From the gradient of sum u x^T to that of u, some of its columns; added to what is there if OWN."""
    block = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    column = tl.program_id(2) * VALUE
    entry = blocks + (first_block + block) * FIELDS
    begin, count = tl.load(entry), tl.load(entry + 1)
    row = (tl.load(entry + 3) - first_group) * heads + head
    moment = gradient + (row * moment_rows + 2 * rank + column) * rank
    u_grad = tl.zeros([TOKENS, VALUE], tl.float32)
    if OWN:
        u_grad += load_tokens(value_grad, None, begin, count, head, heads, head_dim, column, TOKENS, VALUE)
    for first in range(0, rank, SLICE):
        x = load_tokens(key, root, begin, count, head, heads, rank, first, TOKENS, SLICE)
        down = tl.trans(load_matrix(moment, head_dim - column, rank, first, VALUE, SLICE))
        u_grad += tl.dot(x, down, input_precision=PRECISION)
    store_tokens(value_grad, u_grad, begin, count, head, heads, head_dim, column, TOKENS, VALUE)


def token_gradient(
    call: Call, segment: Segment, basis: Basis, gradient: Tensor, read: ReadGradient, gradients: TokenGradients
) -> None:
    """Write the gradients of the segment's keys, the keys before them, and values.

    Args:
        call: the call.
        segment: whose tokens.
        basis: what its groups read.
        gradient: what later reads ask of the moments that each group is part of, [groups, H, 2 r + P, r], float32.
        read: what the segment's own reads ask, where a token reads its block; `gradients` then holds that of values.
        gradients: written.
    """
    rank, heads, tile = call.rank, call.heads, segment.cuts.tile
    shared = {"FIELDS": FIELDS, "OWN": call.own, "TOKENS": tile} | call.tiles(tile)
    key_gradient_kernel[(segment.num_blocks, heads)](
        call.key,
        call.value,
        call.root,
        call.carried,
        basis.whitener,
        segment.cuts.blocks,
        gradient,
        read.key,
        read.previous_key,
        gradients.key,
        gradients.previous_key,
        segment.first_block,
        segment.begin,
        heads,
        rank,
        call.head_dim,
        call.moment_rows,
        segment.cuts.block_size,
        RANK=padded(rank),
        VALUE=value_tile(call.head_dim, 32),
        **shared,
    )
    value = value_tile(call.head_dim)
    value_gradient_kernel[(segment.num_blocks, heads, triton.cdiv(call.head_dim, value))](
        call.key,
        call.root,
        segment.cuts.blocks,
        gradient,
        gradients.value,
        segment.first_block,
        segment.begin,
        heads,
        rank,
        call.head_dim,
        call.moment_rows,
        VALUE=value,
        **shared,
    )
