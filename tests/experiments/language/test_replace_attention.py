"""The experiment on replaced attention, with a few steps of a narrow model: it resumes, and shows what it found."""

from __future__ import annotations

import io
import json

import pytest
from in_process import Silent, run_here
from rich.console import Console

from echo_ska.experiments.language import replace_attention as experiment
from echo_ska.experiments.language import replace_attention_figure
from echo_ska.experiments.language import replace_attention_results as recorded_results
from echo_ska.experiments.language.replace_attention import ARMS, CONTROL, ORIGINAL, ConversionRun
from echo_ska.experiments.trials import recorded as recorded_runs


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A narrow model, three steps a stage, in a folder of its own and in this process; the names of jobs run."""
    names: list[str] = []

    def run_jobs(jobs, console, *, on_result):
        names.extend(job.name for job in jobs)
        for name, result in run_here(jobs).items():
            on_result(name, json.loads(json.dumps(result)))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(recorded_runs, "run_jobs", run_jobs)
    for name, value in {
        "WIDTH": 16,
        "LAYERS": 2,
        "HEADS": 2,
        "LENGTH": 16,
        "PERIOD": 6,
        "QUICK_STEPS": (3, 3, 3),
    }.items():
        monkeypatch.setattr(experiment, name, value)
    for module in (recorded_results, replace_attention_figure):
        monkeypatch.setattr(module, "PERIOD", experiment.PERIOD)
    return names


def test_it_resumes_and_shows_what_is_recorded(small, tmp_path):
    console = Console(file=io.StringIO(), width=200)
    records = experiment.run(console, quick=True)
    assert small[0] == "original, seed 0"
    assert len(small) == 2 + len(ARMS)
    assert not list((tmp_path / "results" / "unfinished" / "replace-attention").iterdir())
    assert experiment.run(console, quick=True) == records
    assert len(small) == 2 + len(ARMS)
    stem = tmp_path / "results" / "replace-attention-quick"
    assert stem.with_suffix(".png").stat().st_size > 20_000
    results = experiment.recorded_results(stem.with_suffix(".jsonl"), 1, quick=True)
    assert list(results) == [ORIGINAL, CONTROL, *ARMS]
    for period in (None, 6):
        table = recorded_results.rows(results, period)
        assert table[1][:3] == [ORIGINAL, "", ""]
        assert all(all(row) for row in table[3:])
    sizes = recorded_results.cache_rows(results)
    assert sizes[1][2:] == sizes[2][2:]  # of both originals
    assert len(set(sizes[3][2:])) == 1  # a state, at any length
    with pytest.raises(ValueError, match="seeds must be at least 1"):
        experiment.run(console, seeds=0, quick=True)


def test_an_original_that_is_lost_is_trained_again_to_the_same_weights(small):
    steps = (3, 2, 2)
    original = experiment.run_conversion(lambda stage: Silent(), run=ConversionRun(ORIGINAL, 0, steps))
    conversion = ConversionRun("every 2nd, carried over", 0, steps)
    kept = experiment.run_conversion(lambda stage: Silent(), run=conversion)
    assert not (conversion.folder() / "original").exists()
    experiment.shutil.rmtree(experiment.UNFINISHED)
    again = experiment.run_conversion(lambda stage: Silent(), run=conversion)
    assert (conversion.folder() / "original").exists()
    assert again["figures"] == kept["figures"]
    assert original["figures"]["finetuned"]["loss"] != kept["figures"]["replaced"]["loss"]
