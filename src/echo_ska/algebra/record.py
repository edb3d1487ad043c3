"""A record of tensors: the base of every state that Echo carries from one call to the next."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

Record = TypeVar("Record", bound="TensorRecord")


@dataclasses.dataclass
class TensorRecord:
    """Base of dataclasses whose fields are tensors, other records, or None.

    Every tensor has the batch as its first dimension, so that rows of a state can be picked (beam search),
    repeated, moved, or measured without knowing which mixer it belongs to.
    """

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """A record of the same type with `function` applied to every tensor."""
        return dataclasses.replace(
            self, **{name: _map(value, function) for name, value in self._fields() if value is not None}
        )

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """All tensors by their dotted name, e.g. `statistics.gram`; fields that are None are left out."""
        found: dict[str, Tensor] = {}
        for name, value in self._fields():
            if isinstance(value, TensorRecord):
                found |= value.tensors(f"{prefix}{name}.")
            elif value is not None:
                found[prefix + name] = value
        return found

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors as they are stored."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors().values())

    def select_rows(self, rows: Tensor) -> Self:
        """The record of the batch rows `rows` (int64, any order, repeats allowed)."""
        return self.map(lambda tensor: tensor.index_select(0, rows.to(tensor.device)))

    def detach(self) -> Self:
        """The same values without their autograd history."""
        return self.map(Tensor.detach)

    def clone(self) -> Self:
        """A copy that shares no memory."""
        return self.map(torch.clone)

    def to(self, device: torch.device | str) -> Self:
        """The record on another device; dtypes stay as they are."""
        return self.map(lambda tensor: tensor.to(device))

    def _fields(self) -> Iterator[tuple[str, Any]]:
        for field in dataclasses.fields(self):
            yield field.name, getattr(self, field.name)


def _map(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    return value.map(function) if isinstance(value, TensorRecord) else function(value)


def concatenate(records: list[Record]) -> Record:
    """One record whose batch is the batches of `records`, in order. The same fields must be None in all."""
    first = records[0]
    merged: dict[str, Any] = {}
    for name, value in first._fields():
        parts = [getattr(record, name) for record in records]
        if isinstance(value, TensorRecord):
            merged[name] = concatenate(parts)
        elif value is not None:
            merged[name] = torch.cat(parts)
    return dataclasses.replace(first, **merged)
