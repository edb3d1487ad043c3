"""What a training is, apart from its model and its data."""

from __future__ import annotations

import math
from dataclasses import dataclass

PRECISIONS = ("auto", "fp32", "bf16")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of `train`. The batch size belongs to the data.

    Attributes:
        steps: optimiser steps.
        learning_rate: the peak.
        warmup_fraction: fraction of the steps over which the learning rate rises to its peak.
        final_learning_rate_fraction: the last step's learning rate over the peak.
        weight_decay: AdamW's, on matrices alone (see `parameter_groups`).
        betas: AdamW's.
        gradient_clip: largest norm of all gradients together; None leaves them as they are.
        seed: of everything random in a step (dropout). The data have a seed of their own, and the model is
            built by the caller.
        precision: "fp32", "bf16" (autocast; parameters stay float32), or "auto": bf16 on a GPU that has it.
        device: "cpu", "cuda", or "auto": the GPU if there is one.
        log_every: steps between two lines of the log.
        evaluate_every: steps between two evaluations; 0 evaluates at the end alone.
        checkpoint_every: steps between two checkpoints; 0 writes one at the end alone.
        keep_checkpoints: how many of the newest checkpoints to keep.

    Raises:
        ValueError: for a value out of range.
    """

    steps: int
    learning_rate: float = 3e-3
    warmup_fraction: float = 0.1
    final_learning_rate_fraction: float = 0.1
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    gradient_clip: float | None = 1.0
    seed: int = 0
    precision: str = "auto"
    device: str = "auto"
    log_every: int = 10
    evaluate_every: int = 0
    checkpoint_every: int = 500
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        for name in ("steps", "log_every", "keep_checkpoints"):
            _require_whole(name, getattr(self, name), least=1)
        for name in ("evaluate_every", "checkpoint_every", "seed"):
            _require_whole(name, getattr(self, name), least=0)
        if self.seed >= 2**63:
            raise ValueError(f"seed must be below 2^63, got {self.seed}.")
        for name in ("warmup_fraction", "final_learning_rate_fraction"):
            if not (0 <= getattr(self, name) <= 1):
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}.")
        if self.learning_rate is None or not (0 < self.learning_rate < math.inf):
            raise ValueError(f"learning_rate must be a positive number, got {self.learning_rate}.")
        if self.gradient_clip is not None and not (0 < self.gradient_clip < math.inf):
            raise ValueError(f"gradient_clip must be a positive number or None, got {self.gradient_clip}.")
        if not (0 <= self.weight_decay < math.inf):
            raise ValueError(f"weight_decay must be a number of at least 0, got {self.weight_decay}.")
        object.__setattr__(self, "betas", tuple(self.betas))  # a list, as JSON gives it, compares equal then
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be two numbers in [0, 1), got {self.betas}.")
        for name, choices in (("precision", PRECISIONS), ("device", DEVICES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}.")

    @property
    def warmup_steps(self) -> int:
        """Steps of warm-up."""
        return round(self.warmup_fraction * self.steps)


def _require_whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}.")
