"""Starting parameters from a given value."""

from __future__ import annotations

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
