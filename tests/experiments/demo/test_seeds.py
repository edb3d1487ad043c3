"""demo-seeds in small: records, resuming, the table and the picture."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
from in_process import run_here
from matplotlib.image import imread
from rich.console import Console

from echo_ska.experiments import EXPERIMENTS
from echo_ska.experiments.demo import rates as demo_rates
from echo_ska.experiments.demo import seeds as demo_seeds
from echo_ska.experiments.demo.recall import recall_model
from echo_ska.experiments.trials import recorded as recorded_runs
from echo_ska.experiments.trials.pool import Job
from echo_ska.experiments.trials.recorded import RecordedRun, recorded
from echo_ska.experiments.trials.trial import EVALUATION_SEED, TUNING_SEED

TINY = demo_seeds.SeedSettings(replace(recall_model("ssm+ska"), steps=1, batch_size=2), {64: 2, 256: 1})


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs jobs here, for speed; returns the names of those run."""
    names: list[str] = []

    def run_jobs(jobs: list[Job], console: Console, *, on_result: Callable[[str, object], None]) -> None:
        names.extend(job.name for job in jobs)
        for name, result in run_here(jobs).items():
            on_result(name, json.loads(json.dumps(result)))

    monkeypatch.setattr(recorded_runs, "run_jobs", run_jobs)
    return names


def test_seeds_are_recorded_once_shown_and_drawn(tmp_path: Path, in_this_process: list[str]) -> None:
    path, screen = tmp_path / "seeds.jsonl", io.StringIO()
    console = Console(file=screen, width=100)
    demo_seeds.run_seeds(console, TINY, 1, path)
    records = demo_seeds.run_seeds(console, TINY, 2, path)
    assert in_this_process == ["seed 0", "seed 1"]
    assert [record.seed for record in records] == [0, 1]
    assert len(path.read_text().splitlines()) == 2
    assert records[0].figures["answers"] == {"64": 16, "256": 8}
    assert set(records[0].figures["accuracy"]) == {"64", "256"}

    other = replace(TINY, sequences={64: 1})
    run = RecordedRun(Job("seed 0", demo_seeds.run_seed), 0, other.configuration(0))
    assert recorded(demo_seeds.NAME, [run], path) == [None]

    demo_seeds.print_table(console, records)
    assert "lowest" in screen.getvalue()
    demo_seeds.draw(records, tmp_path / "seeds.png")
    assert imread(tmp_path / "seeds.png").shape[1] > 800


def test_longest_counts_no_length_behind_a_failure() -> None:
    assert demo_seeds.longest_at({64: 1.0, 256: 0.99, 1024: 0.5, 4096: 1.0}, 0.99) == 256
    assert demo_seeds.longest_at({64: 0.5, 256: 1.0}, 0.99) is None


def test_lengths_go_up_to_a_million() -> None:
    assert list(demo_seeds.sequences_by_length(1_048_576)) == [64 * 4**k for k in range(8)]
    assert demo_seeds.sequences_by_length(1_048_576)[1_048_576] == demo_seeds.MINIMUM_SEQUENCES


def test_fewer_than_one_seed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        demo_seeds.run_seeds(Console(file=io.StringIO()), TINY, 0, tmp_path / "seeds.jsonl")


def test_experiments_say_what_they_are() -> None:
    assert EXPERIMENTS["demo-seeds"].description.endswith(".")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_run_their_module(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        import_module(EXPERIMENTS[name].module), "run", lambda console, **options: asked.append(options)
    )
    EXPERIMENTS[name].run(Console(file=io.StringIO()), seeds=3, quick=True)
    reads_text = {"text": None} if EXPERIMENTS[name].text else {}
    on_device = {"device": "cpu"} if EXPERIMENTS[name].takes_device else {}
    assert asked == [{"seeds": 3, "quick": True, **reads_text, **on_device}]


def test_rates_are_recorded_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_rates, "SEQUENCES", {64: 2, 128: 1})
    runs = [demo_rates.rate_run(replace(TINY.model, learning_rate=rate), 0) for rate in (1e-3, 1e-2)]
    stream = io.StringIO()
    console = Console(file=stream, width=120)
    records = recorded_runs.run_missing(console, demo_rates.NAME, runs, tmp_path / "rates.jsonl")
    again = recorded_runs.run_missing(console, demo_rates.NAME, runs, tmp_path / "rates.jsonl")
    assert again == records
    assert "2 of 2 runs are recorded" in stream.getvalue()
    demo_rates.print_table(console, records)
    assert "0.001" in stream.getvalue()


def test_what_chooses_the_rates_is_not_what_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def kept(console, name, runs, path):
        assert {run.seed for run in runs}.isdisjoint(range(100))
        assert {run.configuration["evaluation"]["seed"] for run in runs} == {TUNING_SEED}
        return []

    monkeypatch.setattr(demo_rates, "run_missing", kept)
    demo_rates.run(Console(file=io.StringIO()), seeds=2, quick=True)
    assert TUNING_SEED != EVALUATION_SEED
    run = demo_rates.rate_run(TINY.model, 0)
    monkeypatch.setattr(demo_rates, "SEQUENCES", {64: 2, 128: 1})
    assert demo_rates.rate_run(TINY.model, 0).configuration != run.configuration
