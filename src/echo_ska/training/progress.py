"""What the loop carries from step to step beside model and optimiser."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass
class Progress:
    """JSON, kept in checkpoints; of all processes together."""

    seconds: float = 0.0  # of training, over all resumed runs, evaluations and checkpoints included
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)  # the latest of the log and the evaluation
    # Since the last line of the log:
    steps: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    scored: int = 0
    tokens: int = 0
    training_seconds: float = 0.0  # steps alone
    recent_losses: list[float] = dataclasses.field(default_factory=list)  # what a spike is judged by

    def add(self, step: Progress) -> None:
        """Count a step."""
        self.steps += step.steps
        self.loss_sum += step.loss_sum
        self.correct += step.correct
        self.scored += step.scored
        self.tokens += step.tokens
        self.training_seconds += step.training_seconds

    def close_window(self) -> dict[str, float]:
        """The means since the last call, which starts anew."""
        means = {"loss": self.loss_sum / self.steps, "tokens_per_second": self.tokens / self.training_seconds}
        if self.scored:
            means["accuracy"] = self.correct / self.scored
        self.steps, self.loss_sum, self.correct, self.scored, self.tokens = 0, 0.0, 0, 0, 0
        self.training_seconds = 0.0
        return means
