"""The values that passes over the segments of a call work with."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from echo_ska.algebra import KoopmanOperator, RidgeFactor


class Keep(enum.IntEnum):
    """What a forward pass keeps for a backward pass."""

    NOTHING = 0
    ANCHORS = 1
    TOKENS = 2


class Workspace:
    """Buffers that a pass uses again from segment to segment: fresh memory costs a page fault for every 4 KB."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._buffers: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """An uninitialised contiguous tensor; its content lasts until the name is asked for again."""
        size = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            buffer = self._buffers[name] = self._like.new_empty(size, dtype=dtype)
        return buffer[:size].view(shape)

    def kept(self, wanted: bool, size: int) -> Tensor:
        """A flat tensor of its own, empty if it is not wanted."""
        return self._like.new_empty(size if wanted else 0)


@dataclasses.dataclass
class Statistics:
    """Gram, lag and value moment of some rows, [rows, H, ...] unless said: sums, or gradients of them."""

    gram: Tensor
    lag_moment: Tensor
    value_moment: Tensor

    @classmethod
    def of_gradients(cls, gradients: Sequence[Tensor | None], like: Statistics) -> Statistics:
        """A copy of the gradients of `like`, 0 where there is None."""
        return cls(
            *(
                torch.zeros_like(sums) if grad is None else grad.to(sums.dtype).clone()
                for grad, sums in zip(gradients, like.tensors(), strict=True)
            )
        )

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.gram, self.lag_moment, self.value_moment

    def rows(self, rows: slice) -> Statistics:
        """A view of some rows."""
        return Statistics(*(tensor[rows] for tensor in self.tensors()))

    def unflatten(self, sizes: tuple[int, ...]) -> Statistics:
        """A view whose first axis is several."""
        return Statistics(*(tensor.view(*sizes, *tensor.shape[-2:]) for tensor in self.tensors()))

    def select(self, rows: Tensor) -> Statistics:
        """A copy of the rows in this order."""
        return Statistics(*(tensor[rows] for tensor in self.tensors()))

    def to(self, dtype: torch.dtype) -> Statistics:
        return Statistics(*(tensor.to(dtype) for tensor in self.tensors()))

    def in_basis(self, matrix: Tensor) -> Statistics:
        """Gradients for statistics that stand in another basis: R^T D R, and D R for the value moment."""
        return Statistics(
            matrix.mT @ self.gram @ matrix, matrix.mT @ self.lag_moment @ matrix, self.value_moment @ matrix
        )

    def replaced(self, rows: Tensor, values: Statistics) -> Statistics:
        """A copy with other values in these rows."""
        return Statistics(*(tensor.clone() for tensor in self.tensors())).set_rows(rows, values)

    def set_rows(self, rows: Tensor, values: Statistics) -> Statistics:
        """Self, with the values of these rows replaced in place."""
        for tensor, new in zip(self.tensors(), values.tensors(), strict=True):
            tensor.index_copy_(0, rows, new.to(tensor.dtype))
        return self

    def summed_chunks(self) -> Statistics:
        """[rows, H, n, ...] summed over the n chunks."""
        return Statistics(*(tensor.sum(dim=2) for tensor in self.tensors()))

    def add_(self, other: Statistics) -> None:
        for tensor, term in zip(self.tensors(), other.tensors(), strict=True):
            tensor += term

    def copy_(self, other: Statistics) -> None:
        for tensor, new in zip(self.tensors(), other.tensors(), strict=True):
            tensor.copy_(new)


@dataclasses.dataclass(frozen=True)
class Call:
    """The inputs of a pass. Statistics and the ridge have the accumulator's dtype.

    Attributes:
        query, key: [B, T, H, r].
        value: [B, T, H, P].
        write_weight: [B, T, H] or None for 1.
        plain, filtered: the shares of p_0 (None for none) and of p_K in what is read, [B, T, H].
        ridge: [H].
        initial: at the start of each sequence, [N, H, ...].
        previous_key: [N, H, r].
        frozen: what the lead of each sequence reads; None where there are no leads.
        power: K.
        causal: False makes every token read its whole sequence.
        interval: a token reads up to itself (0), or up to the last multiple of this in its sequence, counted from the
            end of the lead.
        dtype: of the tokens inside a segment.
        final_state: whether the statistics at the end are asked for.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    write_weight: Tensor | None
    plain: Tensor | None
    filtered: Tensor
    ridge: Tensor
    initial: Statistics
    previous_key: Tensor
    frozen: Statistics | None
    power: int
    causal: bool
    interval: int
    dtype: torch.dtype
    final_state: bool

    @property
    def sizes(self) -> tuple[int, int, int]:
        """H, r, P."""
        return self.query.shape[2], self.query.shape[3], self.value.shape[3]


@dataclasses.dataclass
class Anchor:
    """Statistics in the basis that they whiten: what the tokens of a segment, or of a chunk, are read from.

    Attributes:
        whitener: L^-1, [R, r, r].
        operator: A = L^-1 M L^-T, [R, r, r]; None at power 0.
        readout: C L^-T, [R, P, r].
    """

    whitener: Tensor
    operator: Tensor | None
    readout: Tensor

    @staticmethod
    def size(call: Call) -> int:
        """How many numbers one anchor of one head holds."""
        _, rank, head_dim = call.sizes
        return (2 * rank + head_dim if call.power else rank + head_dim) * rank

    @classmethod
    def view(cls, flat: Tensor, call: Call) -> Anchor:
        """Anchors stored in a flat tensor of R times `size` numbers."""
        _, rank, head_dim = call.sizes
        square = rank * rank
        count = flat.numel() // cls.size(call)
        shares = [square, square if call.power else 0, head_dim * rank]
        whitener, operator, readout = flat.split([count * share for share in shares])
        return cls(
            whitener.view(count, rank, rank),
            operator.view(count, rank, rank) if call.power else None,
            readout.view(count, head_dim, rank),
        )

    def first(self, count: int) -> Anchor:
        """A view of the first `count` ones."""
        return Anchor(
            self.whitener[:count], None if self.operator is None else self.operator[:count], self.readout[:count]
        )

    def copy(self, work: Workspace) -> Anchor:
        """A copy of operator and readout in buffers, with the same whitener."""
        readout = work("kept_readout", *self.readout.shape).copy_(self.readout)
        operator = None
        if self.operator is not None:
            operator = work("kept_operator", *self.operator.shape).copy_(self.operator)
        return Anchor(self.whitener, operator, readout)

    def fill(self, sums: Statistics, factor: RidgeFactor) -> None:
        """Set from statistics [..., r, r] and their factor; computed in their dtype."""
        self.whitener.copy_(factor.inverse_lower.reshape(self.whitener.shape))
        if self.operator is not None:
            self.operator.copy_(KoopmanOperator.of(factor, sums.lag_moment).matrix.reshape(self.operator.shape))
        self.readout.copy_(factor.whiten(sums.value_moment).reshape(self.readout.shape))
