"""The same care for every arm: each tries the same learning rates, and its seeds run at its best one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from rich.console import Console

from echo_ska.experiments.recorded import run_missing
from echo_ska.experiments.trial import Question, Trial
from echo_ska.training import RunRecord


def run_tuned(
    console: Console,
    trials: Sequence[Trial],
    rates: Sequence[float],
    seeds: int,
    path: Path,
    *,
    tuned_on: Sequence[Question],
    tuning_steps: int | None = None,
) -> dict[str, list[RunRecord]]:
    """Every trial at every rate with seed 0, asked `tuned_on`; then all seeds at its best rate, asked everything.

    Args:
        console: where to show.
        trials: one an arm, all of one experiment, the longest first; their rates and seeds are replaced.
        rates: tried for each.
        seeds: at the best rate, at least 1.
        path: the records; what is there is not run again.
        tuned_on: whose mean accuracy decides between rates, ties by the lower training loss. Of other sequences than
            training saw, and of none that `trials` ask, but for the lengths that training saw.
        tuning_steps: of every try; None are the trial's own.

    Returns:
        By arm, the records of all seeds at its best rate, by seed.

    Raises:
        ValueError: `seeds` is below 1, or the records cannot be read.
        JobError: a run failed; those that ended before it are recorded.
    """
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}.")
    name = trials[0].experiment
    tries = [
        trial.with_(
            seed=0, learning_rate=rate, steps=tuning_steps or trial.steps, questions=tuple(tuned_on), measure=None
        )
        for trial in trials
        for rate in rates
    ]
    tried = run_missing(console, name, [candidate.recorded_run() for candidate in tries], path)
    best = [max(tried[n : n + len(rates)], key=_merit) for n in range(0, len(tried), len(rates))]
    chosen = [
        trial.with_(learning_rate=record.figures["learning_rate"]) for trial, record in zip(trials, best, strict=True)
    ]
    runs = [trial.with_(seed=seed).recorded_run() for seed in range(seeds) for trial in chosen]
    records = run_missing(console, name, runs, path)
    return {trial.arm.name: records[place :: len(chosen)] for place, trial in enumerate(chosen)}


def mean_and_range(records: Sequence[RunRecord], question: str) -> tuple[float, float, float]:
    """(mean, lowest, highest) accuracy over the seeds."""
    values = [record.figures["accuracy"][question] for record in records]
    return fmean(values), min(values), max(values)


def _merit(record: RunRecord) -> tuple[float, float]:
    loss = record.figures["training_loss"]
    return fmean(record.figures["accuracy"].values()), float("-inf") if loss is None else -loss
