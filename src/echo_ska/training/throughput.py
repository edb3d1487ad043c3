"""How well a training uses its hardware: model operations over the peak (MFU), and the most memory so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from echo_ska.training.records import peak_memory_bytes


@dataclass(frozen=True)
class Throughput:
    """Figures that follow from a training's speed, or are asked of its device.

    Attributes:
        flops_per_token: operations of a training step, a token (`Cost.flops_per_token`); None if nobody has counted.
        peak: operations a second of all the devices together that `tokens_per_second` is the speed of; None where it is
            not known, and no MFU is given then.
        device: whose memory counts: a GPU's as torch has allocated it, or on a CPU what the process had resident.
    """

    flops_per_token: float | None
    peak: float | None
    device: torch.device

    def added_to(self, figures: Mapping[str, float]) -> dict[str, float]:
        """`figures` with `mfu`, a fraction, and `peak_memory_bytes`, if they have a speed and these are known."""
        if "tokens_per_second" not in figures:
            return dict(figures)
        added = dict(figures)
        if self.flops_per_token is not None and self.peak is not None:
            added["mfu"] = figures["tokens_per_second"] * self.flops_per_token / self.peak
        most = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else peak_memory_bytes()
        if most is not None:
            added["peak_memory_bytes"] = most
        return added
