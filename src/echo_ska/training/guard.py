"""Stops a training whose numbers went wrong, before the step is taken, and names the last good checkpoint."""

from __future__ import annotations

import math
from pathlib import Path

from echo_ska.training.checkpoint import list_checkpoints
from echo_ska.training.processes import shared
from echo_ska.training.scale import ScaleConfig


def check_step(
    step: int, loss: float, norm: float, recent: list[float], scale: ScaleConfig, directory: Path | None
) -> None:
    """Refuse a step whose loss or gradient is not finite, or whose loss is a spike; else remember its loss.

    Args:
        step: from 0.
        loss: of the whole batch.
        norm: of all gradients together.
        recent: the losses before, oldest first; changed in place.
        scale: its `spike_factor` and `spike_window`.
        directory: where checkpoints are kept.

    Raises:
        FloatingPointError: one sentence; it names the last checkpoint.
    """
    wrong = None
    if not math.isfinite(loss):
        wrong = f"loss became {loss} at step {step}"
    elif not math.isfinite(norm):
        wrong = f"gradient's norm became {norm} at step {step}"
    elif scale.spike_factor is not None and len(recent) >= scale.spike_window:
        mean = math.fsum(recent[-scale.spike_window :]) / scale.spike_window
        if loss > scale.spike_factor * mean:
            wrong = (
                f"loss rose to {loss:.4g} at step {step}, more than {scale.spike_factor:g} times the mean of the "
                f"{scale.spike_window} steps before it ({mean:.4g})"
            )
    if wrong is not None:
        found = [] if directory is None else list_checkpoints(directory)
        where = f"the last good checkpoint is {found[-1]}" if found else "no checkpoint has been written"
        raise shared(FloatingPointError(f"The {wrong}, so that step was not taken; {where}."))  # figures of all
    recent.append(loss)  # also while nothing is guarded: the guard may be asked for when the training goes on
    del recent[: -scale.spike_window]
