"""The comparison of language models in small: from texts to runs, tables and picture, and reading in any segments."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from in_process import run_here
from made_up import of_text_trial
from matplotlib.image import imread
from rich.console import Console
from text_folder import write_texts

from echo_ska.experiments import EXPERIMENTS
from echo_ska.experiments.language import (
    language_model,
    language_model_50m,
    language_model_180m,
    language_model_results,
    language_ska,
)
from echo_ska.experiments.language.language_model import PLAN, TextPlan, readings
from echo_ska.experiments.language.language_model_figure import COLOURS, draw
from echo_ska.experiments.language.language_model_results import CONTROLS, ECHO, HYBRID, NO_POSITIONS, SWIGLU
from echo_ska.experiments.trials import recorded as recorded_runs
from echo_ska.experiments.trials.changes import no_positions
from echo_ska.experiments.trials.texts import TextFolder
from echo_ska.models.presets import count_parameters
from echo_ska.training.records import read


@pytest.mark.parametrize(
    ("plan", "parameters"),
    [(PLAN, 1.1e6), (language_model_50m.PLAN, 50e6), (language_model_180m.PLAN, 180e6)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_arms_are_of_one_size_and_what_they_are_called(plan, parameters):
    arms = plan.arms()
    layers = {arm.name: arm.fields["layer_types"] for arm in arms}
    sizes = {arm.name: count_parameters(arm.config(256)) for arm in arms}
    assert set(sizes) == {*CONTROLS, SWIGLU, ECHO} == set(COLOURS)
    assert all(abs(size - sizes[ECHO]) <= 0.005 * sizes[ECHO] for size in sizes.values())
    assert sizes[ECHO] == pytest.approx(parameters, rel=0.02)
    for arm in arms:
        assert arm.fields["feed_forward"] == ("koopman" if arm.name == ECHO else "swiglu")
    assert layers[ECHO] == layers[SWIGLU]
    assert layers[HYBRID] == [kind.replace("ska", "full_attention") for kind in layers[ECHO]]
    by_name = {arm.name: arm for arm in arms}
    assert by_name[NO_POSITIONS] == replace(by_name[HYBRID], name=NO_POSITIONS, changes=(no_positions,))
    mixers_and_feed_forwards = 2 * len(layers[ECHO])
    of_attention = layers["mamba-2 + attention, 8 %"].count("full_attention")
    assert 1 - of_attention / mixers_and_feed_forwards == pytest.approx(0.92, abs=0.004)  # Nemotron-H counts both


TINY = replace(
    PLAN,
    shape={**PLAN.shape, "hidden_size": 16, "rank": 4, "state_size": 4, "num_heads": 2},
    echo_width=200,  # wide enough for the others to be as large
    length=16,
    rates=(1e-3, 1e-2),
    further=(),
    contexts=(8, 16, 64, 128),
    blocks=2,
    steps=3,
    tuning_steps=1,
    tuned_blocks=4,
)
LAYERS = {arm.name: arm.fields["layer_types"] for arm in TINY.arms()}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Tiny models on tiny texts, run in this process; returns the names of the jobs that were run."""
    monkeypatch.chdir(tmp_path)
    write_texts(tmp_path / "texts")
    quick = TextPlan.quick
    monkeypatch.setattr(TextPlan, "quick", lambda plan: replace(quick(plan), steps=4))
    for name, value in {"PLAN": TINY, "SEGMENTS": (16, 100, 1000), "STEPPED_BYTES": 60}.items():
        monkeypatch.setattr(language_model, name, value)
    monkeypatch.setattr(language_ska, "PLAN", TINY)
    names: list[str] = []

    def run_jobs(jobs, console, *, on_result):
        for job in jobs:
            names.append(job.name)
            for name, result in run_here([job]).items():
                on_result(name, json.loads(json.dumps(result)))

    monkeypatch.setattr(recorded_runs, "run_jobs", run_jobs)
    return names


@pytest.mark.parametrize("quick", [False, True], ids=["full", "quick"])
def test_it_runs_once_prints_its_tables_and_draws(small, quick):
    screen, folder = io.StringIO(), Path("texts")
    run = EXPERIMENTS["language-model"].run
    records = run(Console(file=screen, width=300), seeds=1, quick=quick, text=folder)
    jobs = (1 if quick else 3) * len(LAYERS)  # a quick run tries no rates
    assert len(small) == jobs
    assert {record.figures["arm"] for record in records} == set(LAYERS)
    assert all(name in screen.getvalue() for name in (*LAYERS, "unseen authors", "WikiText-2"))
    stem = Path("results") / ("language-model-quick" if quick else "language-model")
    assert len(read(stem.with_suffix(".jsonl"))) == len(small)
    assert imread(stem.with_suffix(".png")).shape[1] > 800
    assert run(Console(file=io.StringIO(), width=300), seeds=1, quick=quick, text=folder) == records
    assert len(small) == jobs  # nothing is run twice
    if not quick:
        echo = next(record for record in records if record.figures["arm"] == ECHO)
        assert set(echo.figures["whole"]) == {"x.txt", "y.txt"}
        found = TINY.recorded_comparison(stem.with_suffix(".jsonl"))
        assert found is not None
        assert [len(each) for each in found.recorded(stem.with_suffix(".jsonl")).values()] == [1] * len(LAYERS)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("test/x", "test/x.txt has 5 bytes, but 128 are read to score it at a context of 128"),
        ("valid/v", "valid/v.txt has 5 bytes, but 40 are read"),  # four blocks of 8, and half a context before them
    ],
)
def test_texts_that_are_too_short_are_refused_at_once(small, path, words):
    (Path("texts") / f"{path}.txt").write_text("short")
    with pytest.raises(ValueError, match=words):
        EXPERIMENTS["language-model"].run(Console(), text=Path("texts"))
    assert small == []


def test_a_text_is_read_alike_byte_by_byte_in_segments_and_whole_in_a_state_of_one_size(small):
    for trial in TINY.comparison(TextFolder.read(Path("texts"), "x")).trials:
        torch.manual_seed(0)
        network = trial.arm.build(256, 0).eval()
        found = readings(network, trial)
        grows = "full_attention" in trial.arm.fields["layer_types"]
        assert set(found["whole"]) == (set() if grows else {"x.txt", "y.txt"})
        assert ("segments" in found) == (trial.arm.name == ECHO)
        for text in found["whole"].values():
            assert text["bytes"] == 699
            assert len(set(text["state_bytes"])) == 1
        if trial.arm.name == ECHO:
            segments = found["segments"]
            assert list(segments["whole"]) == ["16", "100", "1000"]
            assert list(segments["first"]) == ["1", "16", "100", "1000"]
            for name in ("whole", "first"):
                assert max(segments[name].values()) - min(segments[name].values()) < 1e-4
            assert "segments" not in readings(network, replace(trial, seed=1))


def test_what_gets_worse_with_context_and_what_diverged_is_drawn(small, tmp_path):
    def bits(arm: str, part: str, context: int) -> float:
        return 8.0 if arm == "mamba-3" else 5.0 if arm == "transformer" and context > 16 else 2.2 - context / 1000

    results = {
        trial.arm.name: [of_text_trial(trial.with_(seed=seed), bits) for seed in range(2)]
        for trial in TINY.comparison(TextFolder.read(Path("texts"), "x")).trials
    }
    draw(results, tmp_path / "picture.png")
    assert imread(tmp_path / "picture.png").shape[1] > 800
    table = language_model_results.context_rows(results)
    assert {len(row) for row in table} == {5}
    assert table[-1][1:] == ["+0.000"] * 4
    assert language_model_results.lead(results, "test", 64)[1] != "transformer"


@pytest.mark.parametrize("quick", [False, True], ids=["full", "quick"])
def test_changes_of_ska_run_once_and_are_held_against_the_runs_of_the_comparison(small, quick):
    screen, run = io.StringIO(), EXPERIMENTS["language-ska"].run
    records = run(Console(file=screen, width=300), seeds=2, quick=quick, text=Path("texts"))
    shown = {"the start": 2, "Mamba-2 in its place": 2} | dict.fromkeys(language_ska.VARIANTS, 2)
    tried = 0 if quick else 2 * len(TINY.rates)  # the two arms of language-model, and no change, try rates
    assert len(records) == 2 * len(shown)
    assert len(small) == len(records) + tried
    assert all(name in screen.getvalue() for name in shown)
    suffix = "-quick" if quick else ""
    theirs, own = (Path("results") / f"{name}{suffix}.jsonl" for name in ("language-model", "language-ska"))
    rates = {record.figures["learning_rate"] for record in records if record.figures["arm"] != "mamba-2"}
    assert len(rates) == 1
    assert imread(own.with_suffix(".png")).shape[1] > 800
    assert run(Console(file=io.StringIO(), width=300), seeds=2, quick=quick, text=Path("texts")) == records
    assert len(small) == len(records) + tried  # nothing is run twice
    if not quick:
        results = language_ska.recorded_results(own, theirs)
        assert {name: len(each) for name, each in results.items()} == shown
        table = language_ska.rows(results)
        assert table[1][2] == ""
        assert all(row[2].rstrip(" *") for row in table[2:])


def test_nothing_is_held_against_runs_that_are_not_there(small):
    nowhere = Path("results/none.jsonl")
    assert language_ska.recorded_results(nowhere, nowhere) == {}


@pytest.mark.parametrize("name", ["language-model-50m", "language-model-180m"])
def test_large_models_are_not_trained_on_a_cpu_unasked(small, name):
    with pytest.raises(ValueError, match=f"{name} would take days on a CPU: give --device cuda, or --quick"):
        EXPERIMENTS[name].run(Console(), text=Path("texts"))
    assert small == []


def _no_texts() -> TextFolder:
    part = {"files": [], "blake2b": "0", "bytes": []}
    return TextFolder(None, json.dumps({"train": part, "valid": part, "test": part}))


def test_all_changes_of_ska_are_of_one_size():
    whole = PLAN.comparison(_no_texts())
    arms = [trial.arm for trial in (*language_ska.beside(whole).trials, *language_ska.trials(whole, 1e-3))]
    sizes = {arm.name: count_parameters(arm.config(256)) for arm in arms}
    assert max(sizes.values()) <= 1.01 * min(sizes.values())
    assert sizes.keys() == {*language_ska.BESIDE, *language_ska.VARIANTS}


def test_a_gain_is_clear_where_no_seeds_cross():
    def record(bits):
        return of_text_trial(trial, lambda *_: bits)

    trial = language_ska.trials(PLAN.comparison(_no_texts()), 1e-3)[0]
    results = {
        "the start": [record(2.0), record(2.1)],
        "a": [record(1.9), record(1.95)],
        "b": [record(1.8), record(2.05)],
    }
    assert language_ska.gain(results, "a", 512) == (pytest.approx(0.125), True)
    assert language_ska.gain(results, "b", 512) == (pytest.approx(0.125), False)
