"""Who is told how a training goes: its log, observers and the reporter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from echo_ska.training.log import Observer, TrainingLog
from echo_ska.training.processes import Processes
from echo_ska.training.reporter import Reporter


class Journal:
    """Called by all processes, and kept by the first.

    Args:
        processes: who trains together.
        log: of the first process; None keeps none.
        observers: told of every line, in full.
        reporter: told how far the training is.
    """

    def __init__(
        self, processes: Processes, log: TrainingLog | None, observers: Sequence[Observer], reporter: Reporter | None
    ) -> None:
        self.processes, self.log, self.observers, self.reporter = processes, log, observers, reporter

    def write(self, entry: dict[str, Any]) -> None:
        """Add a line, and tell the observers of it; an error is raised in all processes."""
        self.processes.on_first(lambda: self._write(entry))

    def write_last(self, entry: dict[str, Any]) -> None:
        """As `write`, of the evaluation after the last step: nobody is told what the log has of it already."""
        self.processes.on_first(lambda: self._write_last(entry))

    def report(self, step: int, steps: int, figures: dict[str, float]) -> None:
        """See `Reporter.update`."""
        if self.reporter is not None and self.processes.first:
            self.reporter.update(step, steps, figures)

    def _write(self, entry: dict[str, Any]) -> None:
        if self.log is not None:
            self.log.append(entry)
        self._tell(entry)

    def _write_last(self, entry: dict[str, Any]) -> None:
        if self.log is not None and self.log.has(entry):
            return
        self._tell(entry)  # first, for what the log has is not told again
        if self.log is not None:
            self.log.replace_evaluation(entry)

    def _tell(self, entry: dict[str, Any]) -> None:
        for observer in self.observers:
            observer.log(entry)
