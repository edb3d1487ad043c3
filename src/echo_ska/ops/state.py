"""What the op carries from one call to the next."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from echo_ska.algebra import SufficientStatistics, TensorRecord, accumulator_dtype

MOMENTS = ("gram", "lag_moment", "value_moment")
"""The fields of `SufficientStatistics` that a read sees."""

NOT_ITS_SUMS = "what is frozen in the state is not its sums, though a window begins"


@dataclasses.dataclass
class RecurrentState(TensorRecord):
    """The state of Spectral Koopman Attention: its size does not depend on the number of tokens read.

    Attributes:
        statistics: of every token so far.
        frozen_statistics: those that the tokens of the current chunk read, which are the sums at the last multiple of
            the `refresh_interval`: equal to `statistics` where `position` is one. None unless the op ran with one.
        position: tokens read so far, [B], int64; where the next chunk begins follows from it.
    """

    statistics: SufficientStatistics
    frozen_statistics: SufficientStatistics | None
    position: Tensor

    def is_frozen_at(self, refresh_interval: int) -> bool:
        """Whether what is frozen has been since the last multiple of this interval; asks for tensors' values."""
        if self.frozen_statistics is None:
            return False
        last = self.position.clamp_min(0) // refresh_interval * refresh_interval
        return not bool((self.frozen_statistics.count != last).any())

    def begins_with_its_sums(self, refresh_interval: int) -> bool:
        """Whether what is frozen equals the sums in all rows where a window begins; asks for tensors' values."""
        assert self.frozen_statistics is not None
        pairs = [(getattr(self.frozen_statistics, name), getattr(self.statistics, name)) for name in MOMENTS]
        if all(frozen is sums for frozen, sums in pairs):
            return True
        begins = self.position % refresh_interval == 0
        return all(torch.equal(frozen[begins].double(), sums[begins].double()) for frozen, sums in pairs)

    def accumulating(self) -> RecurrentState:
        """The state with its sums and keys in `accumulator_dtype`, as every route takes it; gradients pass."""
        sums, frozen = self.statistics, self.frozen_statistics
        summed = _accumulating(sums)
        if frozen is not None:  # what is one before is one after
            frozen = summed if frozen is sums else _accumulating(frozen)
        return RecurrentState(summed, frozen, self.position)


def check_fields(state: RecurrentState, name: str) -> None:
    """Hold every field to the shapes of `statistics.value_moment`, [N, H, P, r], and to its device.

    Raises:
        ValueError: names the field as a part of `name`, what it is and what it must be.
    """
    if not isinstance(state, RecurrentState):
        raise ValueError(f"{name} must be a RecurrentState, got {type(state).__name__}")
    value_moment = getattr(state.statistics, "value_moment", None)
    if not isinstance(value_moment, Tensor) or value_moment.dim() != 4:
        found = list(value_moment.shape) if isinstance(value_moment, Tensor) else type(value_moment).__name__
        raise ValueError(f"{name}.statistics.value_moment must be a tensor [batch, heads, head_dim, rank], got {found}")
    rows, heads, head_dim, rank = value_moment.shape
    shapes = {
        "gram": (rows, heads, rank, rank),
        "lag_moment": (rows, heads, rank, rank),
        "value_moment": (rows, heads, head_dim, rank),
        "first_key": (rows, heads, rank),
        "previous_key": (rows, heads, rank),
        "count": (rows,),
    }
    for part in ("statistics", "frozen_statistics"):
        statistics = getattr(state, part)
        if statistics is None and part == "frozen_statistics":
            continue
        if not isinstance(statistics, SufficientStatistics):
            raise ValueError(f"{name}.{part} must be SufficientStatistics, got {type(statistics).__name__}")
        for field, shape in shapes.items():
            _check_field(f"{name}.{part}.{field}", getattr(statistics, field), shape, value_moment.device)
    _check_field(f"{name}.position", state.position, (rows,), value_moment.device)


def _check_field(name: str, field: Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    """Fields of one number a row count tokens; the others are floating-point."""
    if not isinstance(field, Tensor):
        raise ValueError(f"{name} must be a torch tensor, got {type(field).__name__}")
    if field.shape != shape:
        raise ValueError(f"{name} must be {list(shape)}, got {list(field.shape)}")
    if len(shape) == 1 and field.dtype != torch.int64:
        raise ValueError(f"{name} must be torch.int64, got {field.dtype}")
    if len(shape) > 1 and not field.is_floating_point():
        raise ValueError(f"{name} must be a floating-point tensor, got {field.dtype}")
    if field.device != device:
        raise ValueError(f"{name} is on {field.device} and the rest of the state on {device}: move them to one device")


def _accumulating(statistics: SufficientStatistics) -> SufficientStatistics:
    dtype = accumulator_dtype(statistics.gram.device)
    return dataclasses.replace(
        statistics,
        gram=statistics.gram.to(dtype),
        lag_moment=statistics.lag_moment.to(dtype),
        value_moment=statistics.value_moment.to(dtype),
        first_key=statistics.first_key.to(dtype),
        previous_key=statistics.previous_key.to(dtype),
    )


def choose_rows(rows: Tensor, then: SufficientStatistics, otherwise: SufficientStatistics) -> SufficientStatistics:
    """`then` in the batch rows where `rows` [B] is true, `otherwise` in the others."""
    return SufficientStatistics(
        **{
            name: torch.where(rows.reshape(-1, *[1] * (tensor.dim() - 1)), tensor, getattr(otherwise, name))
            for name, tensor in then.tensors().items()
        }
    )
