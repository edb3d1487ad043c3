"""Pairs and queries as users hand them over, brought to the layout of the statistics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from echo_ska.memory.settings import MemorySettings

Rows: TypeAlias = Tensor | np.ndarray | Sequence[Any]
"""A tensor, a NumPy array (a read-only or memory-mapped one too) or nested lists of real numbers."""

BLOCK = 8192
"""Pairs that are widened to float64 at a time, so that writing a long or memory-mapped array needs little memory."""


def checked(rows: Rows, name: str, settings: MemorySettings, *width: int) -> Tensor | np.ndarray:
    """`rows` as a tensor or an array whose shape is [B, T, H, *width], without the axes the memory does not have.

    Raises:
        TypeError: not real numbers.
        ValueError: another shape.
    """
    array = rows if isinstance(rows, Tensor | np.ndarray) else _from_nested(rows, name)
    real = not array.is_complex() if isinstance(array, Tensor) else array.dtype.kind in "fiub"
    if not real:
        raise TypeError(f"{name} must be real numbers and are of dtype {array.dtype}")
    fixed = list(array.shape)
    if len(fixed) > settings.time_axis:
        del fixed[settings.time_axis]
    expected = [size for size in (settings.batch_size, settings.num_heads, *width) if size is not None]
    if fixed != expected or array.ndim != len(expected) + 1:
        raise ValueError(
            f"{name} must have the shape {settings.shape('T', *width)} in this memory and have {list(array.shape)}"
        )
    return array


def to_tokens(array: Tensor | np.ndarray, settings: MemorySettings, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A checked array as [B, T, H, ...]."""
    if not isinstance(array, Tensor):  # copied: it may be read-only, reversed, or of a dtype that torch does not have
        array = torch.from_numpy(np.array(array, dtype=np.float64))
    tokens = array.to(device=device, dtype=dtype)
    if settings.batch_size is None:
        tokens = tokens.unsqueeze(0)
    return tokens.unsqueeze(2) if settings.num_heads is None else tokens


def from_tokens(tokens: Tensor, settings: MemorySettings) -> Tensor:
    """The reverse: [B, T, H, ...] without the axes that the memory does not have."""
    if settings.num_heads is None:
        tokens = tokens.squeeze(2)
    return tokens.squeeze(0) if settings.batch_size is None else tokens


def pair_blocks(
    keys: Rows, values: Rows, weights: Rows | None, settings: MemorySettings, device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Keys, values and weights as [B, S, H, r], [B, S, H, P] and [B, S, H], at most `BLOCK` pairs at a time.

    Raises:
        TypeError, ValueError: as `checked`; or the numbers of pairs differ; or a number is not finite; or a weight is
            negative.
    """
    named = {
        "keys": checked(keys, "keys", settings, settings.rank),
        "values": checked(values, "values", settings, settings.head_dim),
    }
    if weights is not None:
        named["weights"] = checked(weights, "weights", settings)
    axis = settings.time_axis
    lengths = {name: array.shape[axis] for name, array in named.items()}
    if len(set(lengths.values())) > 1:
        said = " and ".join(f"{length} {name}" for name, length in lengths.items())
        raise ValueError(f"there must be as many keys as values and weights, and there are {said}")
    for begin in range(0, lengths["keys"], BLOCK):
        window = (slice(None),) * axis + (slice(begin, begin + BLOCK),)
        block = {name: to_tokens(array[window], settings, device, dtype) for name, array in named.items()}
        for name, tokens in block.items():
            if not bool(tokens.isfinite().all()):
                place = begin + int((~tokens.isfinite()).nonzero()[:, 1].min())
                raise ValueError(f"{name} must be finite and are not at pair {place}: leave such pairs out")
        if weights is not None and bool((block["weights"] < 0).any()):
            raise ValueError("weights must not be negative: forget takes pairs away")
        yield block["keys"], block["values"], block.get("weights")


def _from_nested(rows: Rows, name: str) -> np.ndarray:
    """Nested lists as an array; other containers (data frames, sparse matrices) are refused."""
    if isinstance(rows, list | tuple):
        try:
            return np.array(rows, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise TypeError(f"{name} must be nested lists of numbers, all of one length: {error}") from error
    raise TypeError(f"{name} must be a tensor, a NumPy array or nested lists of numbers, not {type(rows).__name__}")
