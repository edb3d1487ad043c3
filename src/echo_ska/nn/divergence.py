"""A training whose numbers stopped being finite: layers give it NaN where they raise elsewhere.

Processes that train together wait for each other in every layer and every backward pass. An error in one of them would
leave the others waiting; NaN reaches the loss of all, by which the training stops.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_gives_nan = False  # no ContextVar: on a GPU, activations are computed again in a thread of autograd's


@contextmanager
def divergence_gives_nan() -> Iterator[None]:
    """While it lasts, layers without a state to return give NaN for numbers that are not finite, and raise no error."""
    global _gives_nan
    before, _gives_nan = _gives_nan, True
    try:
        yield
    finally:
        _gives_nan = before


def gives_nan() -> bool:
    """Whether it lasts."""
    return _gives_nan


def nan_from(value: Tensor, others: Iterable[Tensor | None]) -> Tensor:
    """NaN of the shape of `value`, whose backward pass reaches all that is given, as that of a layer's output does."""
    zero_dim = [other.sum().to(value.dtype) for other in others if other is not None and other.requires_grad]
    return torch.stack([value.new_tensor(torch.nan), *zero_dim]).sum() + value * torch.nan
