"""The same care for every arm: each tries learning rates by the same rule, and its seeds run at its best one."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from echo_ska.experiments.trials.pool import places, run_jobs
from echo_ska.experiments.trials.recorded import RecordedRun, newest_of, recorded, records_named, run_missing
from echo_ska.experiments.trials.trial import TrainedRun
from echo_ska.training import RunRecord


@dataclass(frozen=True)
class Comparison:
    """Arms that are tuned alike and then compared over seeds.

    Attributes:
        trials: one an arm, all of one experiment, the longest first; their seeds are replaced, as are their rates.
        rates: tried for each with seed 0, ascending; none where every trial keeps its own.
        further: higher ones, which an arm tries one after another as long as the highest so far is its best.
        tuned_on: what is asked to decide between rates (`TrainedRun.merit` says how), at lengths that training saw.
        tuning_steps: of every try; None are the trial's own.
        device: where they are trained and asked, "cpu" or "cuda".
        at_once: how many of them at once, as many as the device has places for None; large ones fill a GPU alone.
    """

    trials: Sequence[TrainedRun]
    rates: Sequence[float]
    tuned_on: Sequence[Any]
    tuning_steps: int | None = None
    device: str = "cpu"
    at_once: int | None = None
    further: Sequence[float] = ()

    def on(self, device: str) -> Comparison:
        """The same, trained there."""
        return dataclasses.replace(self, device=device)

    def at_recorded_rates(self, trials: Sequence[TrainedRun], path: Path) -> Comparison:
        """Smaller trials of the same arms in place of these, with nothing tried.

        Each is at the rate that the records of this comparison in `path` found best for its arm, and at the middle one
        where there are none.
        """
        middle = self.rates[len(self.rates) // 2]
        names = {trial.arm.name for trial in trials}
        same = dataclasses.replace(self, trials=[trial for trial in self.trials if trial.arm.name in names])
        found = {name: records[0].figures["learning_rate"] for name, records in same.recorded(path).items()}
        at_rates = [trial.with_(learning_rate=found.get(trial.arm.name, middle)) for trial in trials]
        return dataclasses.replace(self, trials=at_rates, rates=(), further=())

    def run(self, console: Console, seeds: int, path: Path) -> dict[str, list[RunRecord]]:
        """Every trial at every rate, asked `tuned_on`; then all seeds at its best rate, asked everything.

        Args:
            console: where to show.
            seeds: at the best rate, at least 1.
            path: the records; what is there is not run again.

        Returns:
            By arm, the records of all seeds at its best rate, by seed.

        Raises:
            ValueError: `seeds` is below 1, or the records cannot be read.
            JobError: a run failed; those that ended before it are recorded.
        """
        if seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {seeds}.")
        name = self.trials[0].experiment
        run = _runner(self.device, self.at_once)
        for _ in range(1 + len(self.further)):
            run_missing(console, name, [one for tries in self._tries(path) for one, _ in tries], path, run)
        chosen = [trial for trial in self._at_best_rate(path) if trial is not None]
        runs = [trial.with_(seed=seed).recorded_run(self.device) for seed in range(seeds) for trial in chosen]
        records = run_missing(console, name, runs, path, run)
        return {trial.arm.name: records[place :: len(chosen)] for place, trial in enumerate(chosen)}

    def recorded(self, path: Path) -> dict[str, list[RunRecord]]:
        """What `run` returns, as far as it is recorded: arms without a record are left out, as are missing seeds."""
        found = {}
        for trial in self._at_best_rate(path):
            if trial is not None and (records := recorded_seeds(trial, path)):
                found[trial.arm.name] = records
        return found

    def tries(self, path: Path) -> list[RunRecord]:
        """The records of the rates that were tried, as far as there are any."""
        return [record for tries in self._tries(path) for _, record in tries if record is not None]

    def candidates(self, trial: TrainedRun, rates: Sequence[float] | None = None) -> list[TrainedRun]:
        """A trial at every rate, `rates` by default, with seed 0, asked what decides between them."""
        tried = trial.to_tune(self.tuning_steps or trial.steps, self.tuned_on)
        return [tried.with_(learning_rate=rate) for rate in (self.rates if rates is None else rates)]

    @cached_property
    def _runs(self) -> list[list[RecordedRun]]:
        """By trial, a run a rate and further rate; kept, since a configuration takes a while to describe."""
        rates = (*self.rates, *self.further)
        return [[one.recorded_run(self.device) for one in self.candidates(trial, rates)] for trial in self.trials]

    def _tries(self, path: Path) -> list[list[tuple[RecordedRun, RunRecord | None]]]:
        """By trial, the rates that it is to try, by what is recorded so far, each with its record."""
        return [
            self._to_try(trial, runs, recorded(trial.experiment, runs, path))
            for trial, runs in zip(self.trials, self._runs, strict=True)
        ]

    def _to_try(
        self, trial: TrainedRun, runs: list[RecordedRun], records: list[RunRecord | None]
    ) -> list[tuple[RecordedRun, RunRecord | None]]:
        """All `rates`, and of `further` what the records ask for."""
        count = len(self.rates)
        while 0 < count < len(runs):
            found = [record for record in records[:count] if record is not None]
            if len(found) < count or max(found, key=trial.merit) is not found[-1]:
                break
            count += 1
        return list(zip(runs[:count], records[:count], strict=True))

    def _at_best_rate(self, path: Path) -> list[TrainedRun | None]:
        """Each trial at the best of its rates; None while one of them is not recorded."""
        if not self.rates:
            return list(self.trials)
        best: list[TrainedRun | None] = []
        for trial, tries in zip(self.trials, self._tries(path), strict=True):
            found = [record for _, record in tries if record is not None]
            if len(found) < len(tries):
                best.append(None)
            else:
                best.append(trial.with_(learning_rate=max(found, key=trial.merit).figures["learning_rate"]))
        return best


def run_seeds(
    console: Console, trials: Sequence[TrainedRun], seeds: int, path: Path, device: str = "cpu", *, first: int = 0
) -> dict[str, list[RunRecord]]:
    """So many seeds from `first` on of every trial at its own rate, run where missing: by arm, the records by seed."""
    runs = [trial.with_(seed=first + n).recorded_run(device) for n in range(seeds) for trial in trials]
    records = run_missing(console, trials[0].experiment, runs, path, _runner(device))
    return {trial.arm.name: records[place :: len(trials)] for place, trial in enumerate(trials)}


def _runner(device: str, at_once: int | None = None) -> Callable[..., object] | None:
    """What runs jobs on a device, in place of `run_jobs` with all cores."""
    if device == "cpu" and at_once is None:
        return None
    return functools.partial(run_jobs, cores=at_once or places(device))


def recorded_seeds(trial: TrainedRun, path: Path, most: int = 100, *, first: int = 0) -> list[RunRecord]:
    """The records of a trial's seeds from `first` on, up to one that is missing."""
    records = records_named(trial.experiment, path)
    found: list[RunRecord] = []
    while len(found) < most and (record := newest_of(trial.with_(seed=first + len(found)).recorded_run(), records)):
        found.append(record)
    return found


def mean_and_range(records: Sequence[RunRecord], question: str) -> tuple[float, float, float]:
    """(mean, lowest, highest) accuracy over the seeds."""
    values = [record.figures["accuracy"][question] for record in records]
    return fmean(values), min(values), max(values)
