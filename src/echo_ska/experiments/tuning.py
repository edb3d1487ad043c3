"""The same care for every arm: each tries the same learning rates, and its seeds run at its best one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from rich.console import Console

from echo_ska.experiments.recorded import recorded, run_missing
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
    only_recorded_rates: bool = False,
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
        only_recorded_rates: try no rate that is not recorded; an arm without any takes the middle one.

    Returns:
        By arm, the records of all seeds at its best rate, by seed.

    Raises:
        ValueError: `seeds` is below 1, or the records cannot be read.
        JobError: a run failed; those that ended before it are recorded.
    """
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}.")
    name = trials[0].experiment
    if not only_recorded_rates:
        grid = [candidate for trial in trials for candidate in candidates(trial, rates, tuned_on)]
        run_missing(console, name, [candidate.recorded_run() for candidate in grid], path)
    chosen = [
        trial.with_(learning_rate=best_rate(trial, rates, path, tuned_on) or sorted(rates)[len(rates) // 2])
        for trial in trials
    ]
    runs = [trial.with_(seed=seed).recorded_run() for seed in range(seeds) for trial in chosen]
    records = run_missing(console, name, runs, path)
    return {trial.arm.name: records[place :: len(chosen)] for place, trial in enumerate(chosen)}


def candidates(trial: Trial, rates: Sequence[float], tuned_on: Sequence[Question]) -> list[Trial]:
    """The trial at every rate, asked what decides between them."""
    return [trial.with_(learning_rate=rate, seed=0, questions=tuple(tuned_on), measure=None) for rate in rates]


def best_rate(trial: Trial, rates: Sequence[float], path: Path, tuned_on: Sequence[Question]) -> float | None:
    """The best of the rates that are recorded for this arm; None if none is."""
    runs = [candidate.recorded_run() for candidate in candidates(trial, rates, tuned_on)]
    found = [record for record in recorded(trial.experiment, runs, path) if record is not None]
    return max(found, key=_merit).figures["learning_rate"] if found else None


def mean_and_range(records: Sequence[RunRecord], question: str) -> tuple[float, float, float]:
    """(mean, lowest, highest) accuracy over the seeds."""
    values = [record.figures["accuracy"][question] for record in records]
    return fmean(values), min(values), max(values)


def _merit(record: RunRecord) -> tuple[float, float]:
    loss = record.figures["training_loss"]
    return fmean(record.figures["accuracy"].values()), float("-inf") if loss is None else -loss
