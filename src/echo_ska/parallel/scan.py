"""An exclusive scan of records over the processes of a line, in about log2 of their number of rounds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Generic

import torch
from torch import Tensor

from echo_ska.nn.parts import Summary
from echo_ska.parallel.line import Line


def exclusive_scan(line: Line, own: Summary, name: str) -> Summary:
    """The sum, in order, of the records of all processes before this one; zeros in the first.

    In the round of distance d every process hands on what it knows of the d processes that end with itself, and then
    knows 2 d: after ceil(log2(world)) rounds everything. All of it is made of sums of records and of `Line.shift`,
    whose adjoint is the shift the other way, so that autograd goes through the same rounds backwards.

    Args:
        line: the processes.
        own: this process's record; the same shapes and dtypes in all of them.
        name: what `Traffic` counts the messages under.
    """
    before, through, distance = None, own, 1
    while distance < line.world:
        received = unpacked(line.shift(packed(through), distance, name), through)
        before = received if before is None else received + before
        distance *= 2
        if distance < line.world:
            through = received + through
    return own.map(torch.zeros_like) if before is None else before


def packed(record: Summary) -> Tensor:
    """All tensors of a record in one flat one, of the finest of their floating dtypes: one message."""
    tensors = list(record.tensors().values())
    dtype = torch.float32
    for tensor in tensors:
        if tensor.is_floating_point():
            dtype = torch.promote_types(dtype, tensor.dtype)
    return torch.cat([tensor.flatten().to(dtype) for tensor in tensors])


def unpacked(message: Tensor, like: Summary) -> Summary:
    """The record in the form of `like` that `packed` made the message of. Counts are exact up to 2^53 in float64."""
    sizes = [tensor.numel() for tensor in like.tensors().values()]
    pieces = iter(message.split(sizes))
    return like.map(lambda tensor: next(pieces).view(tensor.shape).to(tensor.dtype))


@dataclasses.dataclass
class Restarting(Generic[Summary]):
    """A record of the last of several packed sequences, and whether that one begins in this part: then it forgets.

    Attributes:
        record: one row.
        restarts: [1], 1 where a sequence begins, else 0.
    """

    record: Summary
    restarts: Tensor

    def __add__(self, other: Restarting[Summary]) -> Restarting[Summary]:
        joined, forgets = self.record + other.record, other.restarts > 0
        alone = iter(other.record.tensors().values())
        chosen = joined.map(
            lambda tensor: torch.where(forgets, next(alone).flatten(), tensor.flatten()).view_as(tensor)
        )
        return Restarting(chosen, torch.maximum(self.restarts, other.restarts))

    def map(self, function: Callable[[Tensor], Tensor]) -> Restarting[Summary]:
        return Restarting(self.record.map(function), function(self.restarts))

    def tensors(self) -> dict[str, Tensor]:
        return {**self.record.tensors(), "restarts": self.restarts}
