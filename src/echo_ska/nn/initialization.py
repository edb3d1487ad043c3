"""Starting parameters from a given value."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def start_as(parameter: Tensor, value: Tensor) -> None:
    """Set `parameter` to `value`, unless it was loaded from a checkpoint.

    Hugging Face initialises a model again after loading it and marks what it has loaded; its guard covers
    torch.nn.init, and this function what torch.nn.init cannot express.
    """
    if not getattr(parameter, "_is_hf_initialized", False):
        with torch.no_grad():
            parameter.copy_(value)


def inverse_softplus(number: float) -> float:
    """Whose softplus is `number`, above 0: log(exp(number) - 1), in the form that is exact for a small one."""
    return number + math.log(-math.expm1(-number))


def start_steps(bias: Tensor) -> None:
    """Mamba's published start of dt = softplus(. + bias): steps log-uniform in [1e-3, 1e-1].

    So every scale of time gets as many heads.
    """
    step = torch.empty_like(bias).uniform_(math.log(1e-3), math.log(1e-1)).exp()
    start_as(bias, step + torch.log(-torch.expm1(-step)))  # the inverse softplus
