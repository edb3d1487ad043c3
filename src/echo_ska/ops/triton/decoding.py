"""One token for every row and head, in one launch and in place."""
# mypy: allow-untyped-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from echo_ska.ops.triton.call import OPTIONS, padded, value_tile, warps
from echo_ska.ops.triton.support import MAX_RANK
from echo_ska.ops.triton.tiles import load_matrix, store_matrix


@triton.jit
def decode_kernel(
    moments,
    inverse,
    previous_key,
    query,
    key,
    value,
    write_weight,
    plain,
    filtered,
    output,
    rank,
    head_dim,
    POWER: tl.constexpr,
    RANK: tl.constexpr,
    VALUE: tl.constexpr,
):
    """Write one token into the state of one row and head, and read it, all in the dtype of the state."""
    row = tl.program_id(0).to(tl.int64)
    dtype: tl.constexpr = moments.dtype.element_ty
    index = tl.arange(0, RANK)
    known = index < rank
    x = tl.load(key + row * rank + index, mask=known, other=0.0).to(dtype)
    q = tl.load(query + row * rank + index, mask=known, other=0.0).to(dtype)
    before = tl.load(previous_key + row * rank + index, mask=known, other=0.0)
    if write_weight is not None:
        root = tl.sqrt(tl.load(write_weight + row).to(dtype))
        x *= root

    sums = moments + row * (2 * rank + head_dim) * rank
    gram = load_matrix(sums, rank, rank, 0, RANK, RANK) + x[:, None] * x[None, :]
    store_matrix(sums, gram, rank, rank, 0, RANK, RANK)
    lag = load_matrix(sums + rank * rank, rank, rank, 0, RANK, RANK) + before[:, None] * x[None, :]
    store_matrix(sums + rank * rank, lag, rank, rank, 0, RANK, RANK)
    # (G + x x^T)^-1 = J - h h^T / (1 + x^T h) with h = J x (Sherman & Morrison 1950).
    solved = load_matrix(inverse + row * rank * rank, rank, rank, 0, RANK, RANK)
    h = tl.sum(solved * x[None, :], axis=1)
    share = h / (1.0 + tl.sum(h * x, axis=0))
    solved -= h[:, None] * share[None, :]
    store_matrix(inverse + row * rank * rank, solved, rank, rank, 0, RANK, RANK)

    first_point = tl.sum(solved * q[None, :], axis=1)
    point = first_point
    for _ in tl.static_range(POWER):
        moved = tl.sum(lag * point[:, None], axis=0)
        point = tl.sum(solved * moved[None, :], axis=1)
    point *= tl.load(filtered + row).to(dtype)
    if plain is not None:
        point += tl.load(plain + row).to(dtype) * first_point
    tl.debug_barrier()  # every thread has read the previous key before one overwrites it
    tl.store(previous_key + row * rank + index, x, mask=known)

    for first in range(0, head_dim, VALUE):
        channel = first + tl.arange(0, VALUE)
        u = tl.load(value + row * head_dim + channel, mask=channel < head_dim, other=0.0).to(dtype)
        if write_weight is not None:
            u *= root
        place = sums + (2 * rank + first) * rank
        readout = load_matrix(place, head_dim - first, rank, 0, VALUE, RANK) + u[:, None] * x[None, :]
        store_matrix(place, readout, head_dim - first, rank, 0, VALUE, RANK)
        y = tl.sum(readout * point[None, :], axis=1)
        if output.dtype.element_ty == tl.bfloat16:
            y = y.to(tl.float32)  # the interpreter cannot turn float64 into bfloat16 at once
        tl.store(output + row * head_dim + channel, y.to(output.dtype.element_ty), mask=channel < head_dim)


def decode_step(
    moments: Tensor,
    inverse: Tensor,
    previous_key: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    write_weight: Tensor | None,
    plain: Tensor | None,
    filtered: Tensor,
    power: int,
) -> Tensor:
    """Write one token a row into a decoding state, in place, and read it.

    Shapes are not checked again; nothing is differentiated, nothing waits for the device.

    Args:
        moments: Gram matrix, transposed lag moment and value moment, stacked, [N, H, 2 r + P, r], contiguous.
        inverse: (G + ridge I)^-1, [N, H, r, r], contiguous, in the dtype of `moments`.
        previous_key: the weighted key before, [N, H, r], contiguous, in the dtype of `moments`.
        query, key: [N, H, r].
        value: [N, H, P].
        write_weight: [N, H] in [0, 1], or None for 1.
        plain, filtered: what p_0 and p_K = (J M)^K J q count in the output, [N, H]; plain may be None for 0.
        power: K >= 0.

    Returns:
        [N, H, P] in the dtype of `value`.

    Raises:
        ValueError: the state is not contiguous, or its rank is above 128.
    """
    for name, tensor in (("moments", moments), ("inverse", inverse), ("previous_key", previous_key)):
        if not tensor.is_contiguous():
            raise ValueError(
                f"{name} must be contiguous, since it is changed in place: make it so once, with .contiguous()"
            )
    rows, heads, rank = key.shape
    head_dim = value.shape[-1]
    if rank > MAX_RANK:
        raise ValueError(f"the rank {rank} is above {MAX_RANK}, which the Triton decoder cannot hold: lower it")
    value = value.contiguous()
    output = torch.empty_like(value)
    decode_kernel[(rows * heads,)](
        moments,
        inverse,
        previous_key,
        query.contiguous(),
        key.contiguous(),
        value,
        None if write_weight is None else write_weight.contiguous(),
        None if plain is None else plain.contiguous(),
        filtered.contiguous(),
        output,
        rank,
        head_dim,
        POWER=power,
        RANK=padded(rank),
        VALUE=value_tile(head_dim),
        num_warps=warps(padded(rank)),
        **OPTIONS,
    )
    return output
