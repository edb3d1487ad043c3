"""Runs that are recorded: what is in the file already is not run again, what ends is appended at once."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from echo_ska.experiments.trials.pool import Job, run_jobs
from echo_ska.training import RunRecord
from echo_ska.training.records import append, read


@dataclass(frozen=True)
class RecordedRun:
    """One run of an experiment.

    Attributes:
        job: its function returns a `RunRecord` as plain data.
        seed: the record's seed.
        configuration: the record's configuration, known before the run, in the types that JSON gives.
        folder: of its checkpoints, which goes once it is recorded; None if it keeps none.
    """

    job: Job
    seed: int
    configuration: dict[str, Any]
    folder: Path | None = None

    def matches(self, record: RunRecord) -> bool:
        """Whether `record` is of this run, whenever and wherever it was made."""
        return record.seed == self.seed and _anywhere(record.configuration) == _anywhere(self.configuration)


def run_missing(
    console: Console,
    name: str,
    runs: Sequence[RecordedRun],
    path: Path,
    run: Callable[..., object] | None = None,
) -> list[RunRecord]:
    """Run what `path` has no record of; returns the newest record of every run, in the order of `runs`.

    Args:
        console: where to show.
        name: the experiment's, which its records bear.
        runs: the longest first.
        path: a file of JSON lines; each record is appended as soon as its run ends.
        run: runs jobs in place of `run_jobs`, whose processes may start none themselves; takes what that takes.

    Raises:
        ValueError: the records cannot be read.
        JobError: a run failed; those that ended before it are recorded.
    """
    found = recorded(name, runs, path)
    missing = [one.job for one, record in zip(runs, found, strict=True) if record is None]
    folders = {one.job.name: one.folder for one in runs}

    def keep(name: str, result: dict[str, Any]) -> None:
        append(RunRecord(**result), path)
        _remove(folders[name])

    for one, record in zip(runs, found, strict=True):
        if record is not None:  # of a run that was ended between its record and this
            _remove(one.folder)
    if len(missing) < len(runs):
        done = f"{len(runs) - len(missing)} of {len(runs)} runs are recorded in {path}."
        console.print(done, markup=False, highlight=False)
    if missing:
        (run_jobs if run is None else run)(missing, console, on_result=keep)
        found = recorded(name, runs, path)
    return [record for record in found if record is not None]


def _remove(folder: Path | None) -> None:
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def recorded(name: str, runs: Sequence[RecordedRun], path: Path) -> list[RunRecord | None]:
    """The newest record of each run in `path`, or None where there is none."""
    records = records_named(name, path)
    return [newest_of(run, records) for run in runs]


def records_named(name: str, path: Path) -> list[RunRecord]:
    """All records of an experiment in `path`, oldest first; none where there is no file.

    Raises:
        ValueError: a line of the file is not a record.
    """
    return [record for record in read(path) if record.name == name] if path.exists() else []


def newest_of(run: RecordedRun, records: Sequence[RunRecord]) -> RunRecord | None:
    """The last of the records that is of this run."""
    return next((record for record in reversed(records) if run.matches(record)), None)


def _anywhere(configuration: dict[str, Any]) -> dict[str, Any]:
    """A configuration without the device of its training: at one precision all are the same but for rounding."""
    training = configuration.get("training")
    if not training or "device" not in training:
        return configuration
    device, precision = training["device"], training["precision"]
    if precision == "auto":
        if device != "cpu":  # whichever the device has
            return configuration
        precision = "fp32"
    return configuration | {"training": training | {"device": None, "precision": precision}}
