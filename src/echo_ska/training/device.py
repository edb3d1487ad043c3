"""Where a training computes, and in what."""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
from torch import Tensor

from echo_ska.training.config import TrainingConfig
from echo_ska.training.processes import launched_processes


def training_device(config: TrainingConfig) -> torch.device:
    """The device of this process; ValueError if it is to be a GPU and there is none, or which one is not said."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch finds no GPU: use device cpu or auto.")
    if config.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if launched_processes() == 1:
        return torch.device("cuda")
    if "LOCAL_RANK" not in os.environ:
        raise ValueError("the launcher did not say which GPU is this process's (LOCAL_RANK): start it by torchrun.")
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]))


def half_precision(parameters: Iterable[Tensor]) -> torch.dtype | None:
    """The first of their dtypes that is narrower than float32, in which a training loses small changes; or None."""
    return next((parameter.dtype for parameter in parameters if parameter.dtype.itemsize < 4), None)


def uses_bfloat16(config: TrainingConfig, device: torch.device) -> bool:
    """Whether products run in bfloat16 (autocast); ValueError if they are to and the device cannot."""
    if config.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if config.precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
        raise ValueError("precision is bf16, but this GPU has no bfloat16 arithmetic: use fp32 or auto.")
    return config.precision == "bf16"
