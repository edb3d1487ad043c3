"""What the kernels share: loading tokens, products, and the inverse of a Cholesky factor in registers.

Every function here runs on the device. Tiles have power-of-two sides of at least 16; what lies beyond the true
sizes is loaded as zero and never stored.

A product over the rank takes both operands from memory, a slice at a time: as a whole they would not fit the registers,
and a register tile cannot be cut. What a program has just computed it therefore writes to its workspace, which stays in
the cache, and reads again after a barrier.
"""
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_tokens(
    tokens, root, begin, count, head, heads, width, first_column, TOKENS: tl.constexpr, WIDTH: tl.constexpr
):
    """`count` rows of tokens [T, H, width] from `begin` on, columns from `first_column` on, times `root` if given."""
    slot = tl.arange(0, TOKENS)
    column = first_column + tl.arange(0, WIDTH)
    place = (begin * heads + head) + slot * heads
    mask = (slot[:, None] < count) & (column[None, :] < width)
    tile = tl.load(tokens + place[:, None] * width + column[None, :], mask=mask, other=0.0).to(tl.float32)
    if root is not None:
        tile *= tl.load(root + place, mask=slot < count, other=0.0)[:, None]
    return tile


@triton.jit
def load_previous(
    key,
    root,
    carried,
    begin,
    count,
    opens,
    sequence,
    head,
    heads,
    width,
    first_column,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The weighted keys one token earlier; in a block that `opens` its sequence the first one is the carried key."""
    slot = tl.arange(0, TOKENS)
    column = first_column + tl.arange(0, WIDTH)
    place = (begin * heads + head) + (slot - 1) * heads
    known = (slot < count) & (slot >= opens)
    mask = known[:, None] & (column[None, :] < width)
    tile = tl.load(key + place[:, None] * width + column[None, :], mask=mask, other=0.0).to(tl.float32)
    if root is not None:
        tile *= tl.load(root + place, mask=known, other=0.0)[:, None]
    first = tl.load(carried + (sequence * heads + head) * width + column, mask=column < width, other=0.0)
    return tl.where(slot[:, None] < opens, first[None, :], tile)


@triton.jit
def store_tokens(
    tokens, tile, begin, count, head, heads, width, first_column, TOKENS: tl.constexpr, WIDTH: tl.constexpr
):
    """The inverse of `load_tokens`, in the dtype of `tokens`."""
    slot = tl.arange(0, TOKENS)
    column = first_column + tl.arange(0, WIDTH)
    place = (begin * heads + head) + slot * heads
    mask = (slot[:, None] < count) & (column[None, :] < width)
    tl.store(tokens + place[:, None] * width + column[None, :], tile.to(tokens.dtype.element_ty), mask=mask)


@triton.jit
def load_factor(factor, begin, count, head, heads, TOKENS: tl.constexpr):
    """A number a token, [T, H], as a column [TOKENS, 1]."""
    slot = tl.arange(0, TOKENS)
    return tl.load(factor + (begin * heads + head) + slot * heads, mask=slot < count, other=0.0)[:, None]


@triton.jit
def load_matrix(matrix, height, width, first_column, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    """A row-major matrix [height, width], from `first_column` on, as a tile [HEIGHT, WIDTH]."""
    row = tl.arange(0, HEIGHT)[:, None]
    column = first_column + tl.arange(0, WIDTH)[None, :]
    return tl.load(matrix + row * width + column, mask=(row < height) & (column < width), other=0.0)


@triton.jit
def store_matrix(matrix, tile, height, width, first_column, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    row = tl.arange(0, HEIGHT)[:, None]
    column = first_column + tl.arange(0, WIDTH)[None, :]
    mask = (row < height) & (column < width)
    tl.store(matrix + row * width + column, tile.to(matrix.dtype.element_ty), mask=mask)


@triton.jit
def causal(scores, SIZE: tl.constexpr):
    """Scores of the pairs s <= t alone."""
    slot = tl.arange(0, SIZE)
    return tl.where(slot[:, None] >= slot[None, :], scores, 0.0)


@triton.jit
def scores_of(left, right, height, width, HEIGHT: tl.constexpr, SLICE: tl.constexpr, PRECISION: tl.constexpr):
    """left right^T of two matrices [height, width] in memory."""
    total = tl.zeros([HEIGHT, HEIGHT], tl.float32)
    for first in range(0, width, SLICE):
        a = load_matrix(left, height, width, first, HEIGHT, SLICE)
        b = load_matrix(right, height, width, first, HEIGHT, SLICE)
        total += tl.dot(a, tl.trans(b), input_precision=PRECISION)
    return total


@triton.jit
def times_square(
    left,
    square,
    height,
    width,
    TRANSPOSED: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    SLICE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """left [height, width] times a matrix [width, width], or its transpose, both in memory."""
    total = tl.zeros([HEIGHT, WIDTH], tl.float32)
    for first in range(0, width, SLICE):
        a = load_matrix(left, height, width, first, HEIGHT, SLICE)
        if TRANSPOSED:
            b = tl.trans(load_matrix(square, width, width, first, WIDTH, SLICE))
        else:
            b = load_matrix(square + first * width, width - first, width, 0, SLICE, WIDTH)
        total += tl.dot(a, b, input_precision=PRECISION)
    return total


@triton.jit
def store_solved(
    place,
    rows,
    solve_rows,
    height,
    width,
    OWN: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    SLICE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write G~_t^-1 applied to row t, all rows at once: Y - mask(Y W^T) W (docs/method.md section 3); Y unless OWN."""
    store_matrix(place, rows, height, width, 0, HEIGHT, WIDTH)
    tl.debug_barrier()
    if OWN:
        scores = causal(scores_of(place, solve_rows, height, width, HEIGHT, SLICE, PRECISION), HEIGHT)
        w = load_matrix(solve_rows, height, width, 0, HEIGHT, WIDTH)
        rows -= tl.dot(scores, w, input_precision=PRECISION)
        tl.debug_barrier()
        store_matrix(place, rows, height, width, 0, HEIGHT, WIDTH)
        tl.debug_barrier()


@triton.jit
def inverse_factor(tile, size, SIZE: tl.constexpr):
    """L^-1 of a symmetric positive definite tile = L L^T, and 0, or the order of its first minor that is not.

    Only the leading `size` rows and columns are factored; the others must be those of the identity.

    Elimination in place: step j subtracts row j from the rows below it. Right of column j that leaves the Schur
    complement; left of it stand the sums of rows already subtracted, which are L^-1 but for the scale of each row.
    A row cannot be indexed out of a register tile, so it is summed out.
    """
    index = tl.arange(0, SIZE)
    rows = index[:, None]
    columns = index[None, :]
    scale = tl.full([SIZE], 1.0, tile.dtype)
    info = 0
    for j in range(size):
        row = tl.sum(tl.where(rows == j, tile, 0.0), axis=0)
        pivot = tl.sum(tl.where(index == j, row, 0.0), axis=0)
        positive = pivot > 0
        info = tl.where(positive | (info > 0), info, j + 1)
        # One reciprocal root a step; scaling by it keeps divisions, which are slow in float64, out of the tile.
        inverse_root = 1.0 / tl.sqrt(tl.where(positive, pivot, 1.0))
        scale = tl.where(index == j, inverse_root, scale)
        row = tl.where(index == j, 1.0, row) * inverse_root
        below = tl.where(index > j, row, 0.0)
        tile = tl.where((columns == j) & (rows > j), 0.0, tile) - below[:, None] * row[None, :]
    tile = tl.where(rows == columns, 1.0, tl.where(rows > columns, tile, 0.0))
    return tile * scale[:, None], info
