"""What every launch needs: the inputs of a call, padded sides, warps, and the precision of float32 products."""

from __future__ import annotations

import dataclasses
from typing import Any

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
class Call:
    """The inputs of one call, flat and contiguous: T tokens of all N sequences, one after the other.

    Attributes:
        query, key: [T, H, r].
        value: [T, H, P].
        root: the square root of the write weight, float32, [T, H]; None for 1.
        carried: the weighted key before the first token of each sequence, float32, [N, H, r].
        plain, filtered: what p_0 and p_K count in the output, float32, [T, H]; plain may be None for 0.
        power: K.
        own: whether a token also reads the tokens of its block up to itself (the exact read).
    """

    query: Tensor
    key: Tensor
    value: Tensor
    root: Tensor | None
    carried: Tensor
    plain: Tensor | None
    filtered: Tensor
    power: int
    own: bool

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

    def tiles(self, rows: int) -> dict[str, Any]:
        """What kernels share whose products are of tiles with `rows` rows."""
        return {
            "SLICE": rank_slice(self.rank),
            "PRECISION": dot_precision(self.key.device),
            "num_warps": dot_warps(rows, padded(self.rank)),
            **OPTIONS,
        }


@dataclasses.dataclass(frozen=True)
class TokenGradients:
    """Gradients of the tokens, [T, H, ...].

    Attributes:
        query: in its dtype.
        key, previous_key, value: of the weighted key, the key before it and the weighted value; float32.
        plain, filtered: float32.
    """

    query: Tensor
    key: Tensor
    previous_key: Tensor
    value: Tensor
    plain: Tensor | None
    filtered: Tensor

    @classmethod
    def like(cls, call: Call) -> TokenGradients:
        """Unwritten ones."""
        return cls(
            query=torch.empty_like(call.query),
            key=torch.empty_like(call.key, dtype=torch.float32),
            previous_key=torch.empty_like(call.key, dtype=torch.float32),
            value=torch.empty_like(call.value, dtype=torch.float32),
            plain=None if call.plain is None else torch.empty_like(call.plain),
            filtered=torch.empty_like(call.filtered),
        )
