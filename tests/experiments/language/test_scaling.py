"""scaling in small: the fit finds what was put in, runs resume, and the extrapolation says that it is one."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from in_process import run_here
from made_up import of_text_trial
from matplotlib.image import imread
from rich.console import Console
from text_folder import write_texts

from echo_ska.experiments import EXPERIMENTS, trained_tables
from echo_ska.experiments.language import scaling, scaling_report
from echo_ska.experiments.language.scaling_fit import fit_power_law, interval, resampled
from echo_ska.experiments.trials import recorded as recorded_runs
from echo_ska.experiments.trials.texts import ShippedNovels, TextFolder
from echo_ska.models.presets import count_parameters
from echo_ska.training import RunRecord, load_text
from echo_ska.training.records import append

TINY = scaling.ScalingPlan(widths=(8, 16, 24), rates=(4e-3, 2e-2), steps=2, batch_size=2, length=16, scored_bytes=64)
SIZES = (3e4, 1e5, 2e5, 5e5, 9e5)


@pytest.mark.parametrize(("floor", "amplitude", "exponent"), [(1.5, 20.0, 0.3), (0.0, 5.0, 0.08), (2.0, 0.0, 0.5)])
def test_the_law_that_made_the_losses_is_found(floor, amplitude, exponent):
    losses = [floor + amplitude * size**-exponent for size in SIZES]
    law = fit_power_law(SIZES, losses)
    for size in (*SIZES, 1e9):
        assert law.at(size) == pytest.approx(floor + amplitude * size**-exponent, abs=0.01)
    if amplitude:
        assert law.exponent == pytest.approx(exponent, rel=0.02)


def test_a_floor_and_an_amplitude_are_never_negative():
    falling = fit_power_law(SIZES, [3.0, 2.0, 1.5, 1.0, 0.2])  # faster than a power towards something positive
    assert falling.floor == 0
    rising = fit_power_law(SIZES, [1.0, 1.1, 1.2, 1.3, 1.4])
    assert rising.amplitude == 0
    assert rising.floor == pytest.approx(1.2)


def test_the_interval_covers_the_truth_and_widens_away_from_the_sizes():
    generator = np.random.default_rng(0)
    losses = {size: list(1.5 + 20 * size**-0.3 + 0.01 * generator.standard_normal(4)) for size in SIZES}
    laws = resampled(losses, draws=300)
    assert len(laws) == 300
    widths = {}
    for size in (2e5, 1e9):
        found = interval(1.5 + 20 * size**-0.3, [law.at(size) for law in laws])
        assert found.low - 0.02 < found.value < found.high + 0.02
        widths[size] = found.high - found.low
    assert widths[1e9] > 5 * widths[2e5]
    assert laws == resampled(losses, draws=300)  # the draws have a seed


def test_one_seed_gives_no_interval():
    assert resampled({size: [1.0] for size in SIZES}) == []
    assert (interval(1.0, []).low, interval(1.0, []).high) == (None, None)
    assert "no interval" in scaling_report.shown(interval(1.0, []))


def test_too_few_sizes_are_refused():
    with pytest.raises(ValueError, match="at least three sizes"):
        fit_power_law([1.0, 2.0, 2.0], [1.0, 1.0, 1.0])


def test_sizes_are_echo_1m_at_other_widths():
    sizes = []
    for width in scaling.PLAN.widths:
        config = scaling.arm(width).config(256)
        assert config.layer_types == ["mamba2", "ska", "ska", "mamba2"]
        sizes.append(count_parameters(config) - 2 * 256 * width)
    assert count_parameters(config) == 984_312  # as checkpoints/echo-books
    assert sizes == sorted(sizes)
    assert sizes[0] < 4e4
    assert sizes[-1] == pytest.approx(0.92e6, rel=0.01)


def test_rates_are_chosen_by_other_text_than_is_reported_and_neither_is_learnt():
    texts = ShippedNovels.read_shipped()
    valid, test = (texts.load(part)[0] for part in ("valid", "test"))
    (learnt,) = texts.load("train")
    assert learnt.path == valid.path != test.path
    whole = load_text([learnt.path])[0].tokens
    assert torch.equal(torch.cat([learnt.tokens, valid.tokens]), whole)
    for plan in (scaling.PLAN, scaling.QUICK):
        trials = scaling.comparison(texts, plan).trials
        tried = trials[0].to_tune(1, (plan.scoring("valid"),))
        assert list(tried.configuration()["texts"]) == ["valid"]
        assert list(trials[0].configuration()["texts"]) == ["test"]
        for part in ("valid", "test"):
            scoring = plan.scoring(part)
            scoring.refuse_short(texts)
            assert scoring.blocks * plan.length // 2 == plan.scored_bytes


def test_how_often_the_text_is_read_is_said_wherever_the_experiment_is_told_of():
    learnt = ShippedNovels.read_shipped().parts["train"]
    said = scaling_report.reading(learnt["files"], scaling.PLAN.read, sum(learnt["bytes"]))
    assert said.startswith("one novel, read ")
    page = (Path(__file__).parents[3] / "docs" / "scaling.md").read_text()
    for told in (scaling.__doc__, page):
        assert said in " ".join(told.split())
    assert scaling_report.reading(["a.txt"], 300, 200) == "one text, read 1.5 times"
    assert scaling_report.reading(["a.txt", "b.txt"], 100, 200) == "2 texts, read 0.5 times"


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Both forms are tiny and their jobs run here; their names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scaling, "PLAN", TINY)
    monkeypatch.setattr(scaling, "QUICK", dataclasses.replace(TINY, steps=1))
    names: list[str] = []

    def run_jobs(jobs, console, *, on_result):
        names.extend(job.name for job in jobs)
        for name, result in run_here(jobs).items():
            on_result(name, json.loads(json.dumps(result)))

    monkeypatch.setattr(recorded_runs, "run_jobs", run_jobs)
    return names


def test_it_tunes_runs_its_seeds_prints_and_draws(started):
    screen = io.StringIO()
    records = scaling.run(Console(file=screen, width=200), seeds=2)
    assert len(started) == 3 * (2 + 2)  # two rates each, and two seeds at the better one
    assert sorted((record.figures["arm"], record.seed) for record in records) == sorted(
        (f"width {width}", seed) for width in TINY.widths for seed in (0, 1)
    )
    for record in records:
        assert 6 < record.figures["bits_per_byte"]["test"]["16"] < 10  # hardly trained
    assert "Every model learns one novel, read 0.0 times. With --text" in screen.getvalue()
    assert "echo-1b, extrapolated" in screen.getvalue()
    assert imread(Path("results") / "scaling.png").shape[1] > 800
    assert scaling.run(Console(file=io.StringIO()), seeds=2) == records
    assert len(started) == 12  # nothing is run twice
    found = scaling.recorded_results(Path("results") / "scaling.jsonl", TINY)
    assert [record for of_size in found.values() for record in of_size] == records

    best = {name: of_size[0].figures["learning_rate"] for name, of_size in found.items()}
    small = scaling.run(Console(file=io.StringIO(), width=200), quick=True)
    assert len(started) == 12 + 3  # nothing is tried
    assert {record.figures["arm"]: record.figures["learning_rate"] for record in small} == best
    assert imread(Path("results") / "scaling-quick.png").shape[1] > 800


def test_held_out_text_that_is_too_short_is_refused_before_anything_is_trained(started, tmp_path):
    folder = write_texts(tmp_path / "texts")
    for part in ("valid/v.txt", "test/y.txt"):
        kept = (folder / part).read_text()
        (folder / part).write_text(kept[:20])
        with pytest.raises(ValueError, match=rf"{part} has 20 bytes, but \d+ are read to score it at a context of 16"):
            EXPERIMENTS["scaling"].run(Console(), quick=True, text=folder)
        (folder / part).write_text(kept)
    assert started == []
    EXPERIMENTS["scaling"].run(Console(file=io.StringIO()), quick=True, text=folder)
    assert len(started) == 3


def record_of(trial, bits: float, **more) -> RunRecord:
    return of_text_trial(trial, lambda *_: bits, training_bytes=1_100_000, **more)


def write(path: Path, texts, law) -> None:
    """Tries of every rate, of which the second is best, and two seeds at it, of losses that follow a law."""
    comparison = scaling.comparison(texts)
    for trial in comparison.trials:
        for tried in comparison.candidates(trial):
            append(record_of(tried, 2.0 + (tried.learning_rate != scaling.PLAN.rates[1])), path)
        for seed in (0, 1):
            run = trial.with_(seed=seed, learning_rate=scaling.PLAN.rates[1])
            size = scaling_report.size_of(record_of(run, 0.0))
            append(record_of(run, law(size) + 0.01 * seed), path)


def test_the_table_of_the_docs_needs_every_size_and_rate_and_is_of_one_text(tmp_path, monkeypatch):
    monkeypatch.setattr(trained_tables, "RESULTS", tmp_path)
    path = tmp_path / "scaling.jsonl"
    assert trained_tables.ROWS["scaling"]() is None
    write(path, TextFolder.read(write_texts(tmp_path / "texts"), "x"), lambda size: 0.1)
    write(path, ShippedNovels.read_shipped(), lambda size: 1 + 30 * size**-0.25)
    header, *rows = trained_tables.ROWS["scaling"]()
    assert header[0] == "width"
    assert [row[0] for row in rows[:5]] == [str(width) for width in scaling.PLAN.widths]
    assert {row[2] for row in rows[:5]} == {"0.008"}
    floor, exponent, ahead = (row[-1] for row in rows[5:8])
    assert float(floor.split()[0]) == pytest.approx(1.005, abs=0.02)
    assert float(exponent.split()[0]) == pytest.approx(0.25, abs=0.01)
    assert "(" in ahead
    assert rows[7][0] == "echo-1b, extrapolated"
    assert rows[8][0] == "after one novel, read 7.4 times"  # of the 1,100,000 bytes that `record_of` says
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-5]))  # without the last size
    assert trained_tables.ROWS["scaling"]() is None


def test_a_training_that_diverged_is_said_and_left_out(tmp_path):
    trials = scaling.comparison(ShippedNovels.read_shipped()).trials[-3:]
    results = {trial.arm.name: [record_of(trial, 3.0)] for trial in trials}
    smallest = trials[-1]
    results[smallest.arm.name] = [record_of(smallest, 8.0, diverged="at step 3")]
    rows = scaling_report.rows(results)
    assert rows[1][-1] == "diverged"
    assert len(rows) == 5  # two sizes are too few to fit
    scaling_report.draw(results, tmp_path / "picture.png")
    assert imread(tmp_path / "picture.png").shape[1] > 800
