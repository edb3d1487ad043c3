"""Runs of the algebra's experiments in this process, held to what every experiment promises: it resumes."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from in_process import run_here
from rich.console import Console

from echo_ska.experiments import tables
from echo_ska.experiments.trials import recorded
from echo_ska.experiments.trials.pool import Job
from echo_ska.experiments.trials.recorded import RecordedRun, run_missing
from echo_ska.training import RunRecord


def run_twice(name: str, runs: Sequence[RecordedRun], folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[RunRecord]:
    """Run the first of `runs`, then all: each only once. The records, and the experiment's tables can be written."""
    started: list[str] = []

    def run_jobs(jobs: list[Job], console: Console, *, on_result: Callable[[str, object], None]) -> None:
        started.extend(job.name for job in jobs)
        for job, result in run_here(jobs).items():
            on_result(job, json.loads(json.dumps(result)))

    monkeypatch.setattr(recorded, "run_jobs", run_jobs)
    path, console = folder / f"{name}.jsonl", Console(file=io.StringIO())
    run_missing(console, name, runs[:1], path)
    records = run_missing(console, name, runs, path)
    assert started == [run.job.name for run in runs]
    assert run_missing(console, name, runs, path) == records
    assert len(started) == len(runs) == len(path.read_text().splitlines())
    monkeypatch.setattr(tables, "RESULTS", folder)
    return records


def written_table(name: str) -> list[list[str]]:
    """The cells of a table as `make tables` writes it, without its header's rule."""
    lines = tables.TABLES[name]().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for place, line in enumerate(lines) if place != 1]
