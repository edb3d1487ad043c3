"""Recall tasks: seeded, streamed, validated; each module's docstring draws its sequence."""

from echo_ska.tasks.base import IGNORED, RecallBatch, RecallTask, accuracy, answer_positions
from echo_ska.tasks.mqar import MultiQueryRecall
from echo_ska.tasks.mqar_grid import MultiQueryRecallGrid
from echo_ska.tasks.orbit import OrbitRecall

TASKS: dict[str, type[RecallTask]] = {"mqar": MultiQueryRecall, "mqar-grid": MultiQueryRecallGrid, "orbit": OrbitRecall}
"""Task classes by the name the command line uses."""

__all__ = [
    "IGNORED",
    "TASKS",
    "MultiQueryRecall",
    "MultiQueryRecallGrid",
    "OrbitRecall",
    "RecallBatch",
    "RecallTask",
    "accuracy",
    "answer_positions",
]
