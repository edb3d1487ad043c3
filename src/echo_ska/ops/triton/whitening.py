"""The basis in which a group's tokens are read: each Gram matrix factored once, its operator and readout in it."""
# mypy: allow-untyped-defs

from __future__ import annotations

import dataclasses

import torch
import triton
import triton.language as tl
from torch import Tensor

from echo_ska.ops.triton.call import OPTIONS, padded, warps
from echo_ska.ops.triton.tiles import inverse_factor, load_matrix, store_matrix


@triton.jit
def whitener_kernel(moments, ridge, whitener, info, heads, rank, moment_rows, RANK: tl.constexpr):
    """L^-1 of the Gram matrix plus the ridge, in the dtype of the moments.

    float64 at every rank: the condition number is the number of tokens over the ridge, and one tile still fits the
    registers of 16 warps at rank 128.
    """
    group = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    row = group * heads + head
    index = tl.arange(0, RANK)
    diagonal = tl.where(index < rank, tl.load(ridge + head), 1.0)
    gram = load_matrix(moments + row * moment_rows * rank, rank, rank, 0, RANK, RANK)
    gram += tl.where(index[:, None] == index[None, :], diagonal[:, None], 0.0)
    inverse, failed = inverse_factor(gram, rank, RANK)
    store_matrix(whitener + row * rank * rank, inverse, rank, rank, 0, RANK, RANK)
    tl.store(info + row, failed)


@dataclasses.dataclass(frozen=True)
class Basis:
    """What a read needs of the statistics, in the basis where G + ridge I is the identity; float32.

    Attributes:
        whitener: L^-1, [groups, H, r, r].
        operator: A^T = L^-1 M^T L^-T, which moves rows, [groups, H, r, r].
        readout: C L^-T, [groups, H, P, r].
        info: 0, or the order of the first minor that is not positive definite, int32, [groups, H].
    """

    whitener: Tensor
    operator: Tensor
    readout: Tensor
    info: Tensor


def whiten(moments: Tensor, ridge: Tensor) -> Basis:
    """Factor the stacked moments [groups, H, 2 r + P, r] with the ridge [H], all in float64."""
    groups, heads, rows, rank = moments.shape
    whitener = moments.new_empty(groups, heads, rank, rank)
    info = torch.empty(groups, heads, device=moments.device, dtype=torch.int32)
    whitener_kernel[(groups, heads)](
        moments, ridge, whitener, info, heads, rank, rows, RANK=padded(rank), num_warps=warps(padded(rank)), **OPTIONS
    )
    # Products of float64 matrices are cuBLAS' trade, and Triton has none before 3.4.
    half_white = moments[:, :, rank:] @ whitener.mT
    operator = whitener @ half_white[:, :, :rank]
    return Basis(whitener.float(), operator.float(), half_white[:, :, rank:].float(), info)
