"""Recall tasks: seeded, streamed, validated.

Each module's docstring draws its sequence: see `echo_ska.tasks.mqar` and `echo_ska.tasks.mqar_grid`.
"""

from echo_ska.tasks.base import IGNORED, RecallBatch, RecallTask, accuracy, answer_positions
from echo_ska.tasks.mqar import MultiQueryRecall
from echo_ska.tasks.mqar_grid import MultiQueryRecallGrid

TASKS: dict[str, type[RecallTask]] = {"mqar": MultiQueryRecall, "mqar-grid": MultiQueryRecallGrid}
"""Task classes by the name the command line uses."""

__all__ = [
    "IGNORED",
    "TASKS",
    "MultiQueryRecall",
    "MultiQueryRecallGrid",
    "RecallBatch",
    "RecallTask",
    "accuracy",
    "answer_positions",
]
