"""What every launch needs: padded sides, warps, the precision of float32 products, and the tokens of a call."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

MAX_TOKENS = 64  # tokens a block
# Multiply and add in one instruction, and no software pipeline: its buffers in shared memory would cost occupancy, and
# loops here are short. Said because the defaults differ from version to version.
OPTIONS = {"enable_fp_fusion": True, "num_stages": 1}


def padded(size: int) -> int:
    """The side of the tile that holds `size`: a power of two, at least the 16 that a matrix product needs."""
    return max(16, 1 << (size - 1).bit_length())


def value_tile(head_dim: int, most: int = 64) -> int:
    """Columns of a value that a kernel holds at once."""
    return min(padded(head_dim), most)


def rank_slice(rank: int) -> int:
    """Columns over which a product is summed at once."""
    return 16 if padded(rank) <= 32 else 32


def warps(side: int) -> int:
    """Warps a program whose largest tile is [side, side]: about 64 registers a thread for one float64 tile."""
    return 4 if side <= 32 else 8 if side <= 64 else 16


def dot_warps(tokens: int, rank: int) -> int:
    """Warps a program whose products are of tiles [tokens, rank]."""
    return 4 if tokens * rank <= 2048 else 8


def dot_precision(device: torch.device) -> str:
    """How float32 matrix products are computed: exactly, or as three TF32 products that lose no more than rounding.

    Tensor cores from compute capability 8.0 on take the second; products outside of them ("ieee") keep both operands
    in registers, thousands of bytes a thread, which spill. AMD's matrix cores multiply float32 as it is.
    """
    if device.type != "cuda" or torch.version.hip is not None:
        return "ieee"
    return "tf32x3" if torch.cuda.get_device_capability(device) >= (8, 0) else "ieee"


@dataclasses.dataclass(frozen=True)
class Tokens:
    """One call's tokens, flat and contiguous: T tokens of all N sequences, one after the other.

    Attributes:
        query, key: [T, H, r].
        value: [T, H, P].
        root: the square root of the write weight, float32, [T, H]; None for 1.
        carried: the weighted key before the first token of each sequence, float32, [N, H, r].
    """

    query: Tensor
    key: Tensor
    value: Tensor
    root: Tensor | None
    carried: Tensor

    @property
    def heads(self) -> int:
        return self.key.shape[1]

    @property
    def rank(self) -> int:
        return self.key.shape[2]

    @property
    def head_dim(self) -> int:
        return self.value.shape[2]

    @property
    def moment_rows(self) -> int:
        """Rows of the stacked moments: the Gram matrix, the transposed lag moment, the value moment."""
        return 2 * self.rank + self.head_dim
