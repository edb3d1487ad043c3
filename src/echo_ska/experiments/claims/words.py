"""Figures in the sentences of verdicts."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean

from echo_ska.experiments.trials.figures import percent
from echo_ska.training import RunRecord


def accuracy(records: Iterable[RunRecord], question: str) -> float:
    """The mean over seeds, in %."""
    return 100 * fmean(record.figures["accuracy"][question] for record in records)


def points(value: float) -> str:
    """98.3 %: one decimal, rounded down as in all tables."""
    return f"{percent(value / 100)} %"


def gain(value: float) -> str:
    """+3.2 points."""
    return f"{round(value, 1) + 0.0:+.1f} points"  # no -0.0
