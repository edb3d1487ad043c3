"""What an associative memory is made for: the shape of what it stores and how it is read."""

from __future__ import annotations

import dataclasses
import math
import operator
from typing import Any


@dataclasses.dataclass(frozen=True)
class MemorySettings:
    """The sizes of a memory, which stay, and the settings of its read, which are no part of what it stores.

    Attributes:
        rank: r, width of keys and queries.
        head_dim: P, width of values.
        num_heads: H independent memories side by side, or None for one and no such axis in any tensor.
        batch_size: B independent sequences side by side, or None for one and no such axis in any tensor.
        ridge: > 0.
        power: K >= 0; 0 is ridge regression without an intercept.
        gain: > 0, factor of the operator.
        blend: in [0, 1], or None for the pure power filter.

    Raises:
        ValueError, TypeError: a setting is out of its range or of another type; names it.
    """

    rank: int
    head_dim: int
    num_heads: int | None = None
    batch_size: int | None = None
    ridge: float = 1.0
    power: int = 0
    gain: float = 1.0
    blend: float | None = None

    def __post_init__(self) -> None:
        for name in ("rank", "head_dim"):
            object.__setattr__(self, name, _integer(name, getattr(self, name), 1))
        for name in ("num_heads", "batch_size"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _integer(name, getattr(self, name), 1))
        object.__setattr__(self, "power", _integer("power", self.power, 0))
        for name in ("ridge", "gain"):
            object.__setattr__(self, name, _finite(name, getattr(self, name)))
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0 and is {getattr(self, name)}")
        if self.blend is not None:
            object.__setattr__(self, "blend", _finite("blend", self.blend))
            if not 0 <= self.blend <= 1:
                raise ValueError(f"blend must be None or from 0 to 1 and is {self.blend}")

    def shape(self, tokens: str, *width: int) -> str:
        """How a tensor of this memory must be shaped, for people, e.g. "[2, T, 3, 8]"."""
        sizes = [self.batch_size, tokens, self.num_heads, *width]
        return f"[{', '.join(str(size) for size in sizes if size is not None)}]"

    @property
    def time_axis(self) -> int:
        """The axis of a tensor that counts pairs or queries."""
        return 0 if self.batch_size is None else 1


def _integer(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer and is {value!r}")
    number = operator.index(value)
    if number < least:
        raise ValueError(f"{name} must be at least {least} and is {number}")
    return number


def _finite(name: str, value: Any) -> float:
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number and is {value!r}")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite and is {number}")
    return number
