"""scaling in small: the fit finds what was put in, runs resume, and the extrapolation says that it is one."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from in_process import run_here
from matplotlib.image import imread
from rich.console import Console
from study_runs import run_twice

from echo_ska.experiments import recorded as recorded_runs
from echo_ska.experiments import scaling, scaling_report, trained_tables
from echo_ska.experiments.scaling_fit import fit_power_law, interval, resampled
from echo_ska.models.presets import count_parameters
from echo_ska.training import RunRecord, make_record
from echo_ska.training.records import append, read

TINY = scaling.Plan(widths=(8, 16, 24), rates=(4e-3, 2e-2), steps=2, batch_size=2, length=16, scored_bytes=64)
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
    config = scaling.SizeRun(128, 1e-3, 0, None, scaling.PLAN).config()
    assert count_parameters(config) == 984_312  # as checkpoints/echo-books
    sizes = []
    for width in scaling.PLAN.widths:
        config = scaling.SizeRun(width, 1e-3, 0, None, scaling.PLAN).config()
        assert config.layer_types == ["mamba2", "ska", "ska", "mamba2"]
        sizes.append(count_parameters(config) - 2 * 256 * width)
    assert sizes == sorted(sizes)
    assert sizes[0] < 4e4
    assert sizes[-1] == pytest.approx(0.92e6, rel=0.01)


def test_tuning_and_report_read_different_bytes_of_text_that_was_not_learnt(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"The text {name}. " * 40)
    learnt, held_out = scaling.texts(tmp_path)
    assert {file.path.name for file in learnt}.isdisjoint(file.path.name for file in held_out)
    learnt, held_out = scaling.texts(None)
    assert [file.path.name for file in held_out] == ["Conrad_Almayer_1895.txt"]
    assert len(held_out[0].tokens) > 2 * scaling.PLAN.scored_bytes
    ours, theirs = (scaling.SizeRun(8, 1e-3, 0, text, TINY).configuration() for text in (None, tmp_path))
    assert ours["scored"]["blake2b"] != theirs["scored"]["blake2b"]


def test_a_run_resumes_and_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [scaling.SizeRun(width, 4e-3, 0, None, TINY).recorded_run() for width in (8, 16)]
    for record in run_twice(scaling.NAME, runs, tmp_path, monkeypatch):
        figures = record.figures
        assert 6 < figures["bits_per_byte"] < 10  # hardly trained
        assert figures["bits_per_byte"] != figures["tuning_bits_per_byte"]
        assert figures["flops"] > 6 * figures["parameters"] * figures["tokens"] > 0
    assert not any((tmp_path / "results" / "unfinished").glob("*"))


def test_it_tunes_runs_its_seeds_prints_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    started: list[str] = []

    def run_jobs(jobs, console, *, on_result):
        started.extend(job.name for job in jobs)
        for name, result in run_here(jobs).items():
            on_result(name, result)

    monkeypatch.setattr(recorded_runs, "run_jobs", run_jobs)
    monkeypatch.setattr(scaling, "QUICK", TINY)
    screen = io.StringIO()
    records = scaling.run(Console(file=screen, width=200), seeds=2, quick=True)
    assert [(record.figures["width"], record.seed) for record in records] == [
        (w, s) for w in TINY.widths for s in (0, 1)
    ]
    assert len(started) == 3 * 2 + 3  # two rates each with seed 0, and seed 1 at the better one
    path = Path("results") / "scaling-quick.jsonl"
    for width in TINY.widths:
        tried = [r for r in read(path) if r.figures["width"] == width and r.seed == 0]
        better = min(tried, key=lambda record: record.figures["tuning_bits_per_byte"])
        chosen = {r.figures["learning_rate"] for r in records if r.figures["width"] == width}
        assert chosen == {better.figures["learning_rate"]}
    assert "echo-1b, extrapolated" in screen.getvalue()
    assert imread(Path("results") / "scaling-quick.png").shape[1] > 800
    assert scaling.run(Console(file=io.StringIO()), seeds=2, quick=True) == records
    assert len(started) == 9  # nothing is run twice
    assert scaling.recorded_results(path, TINY) == records


def made_up(width: int, rate: float, seed: int, text: str = "novels", bits: float | None = 2.0) -> RunRecord:
    figures = {
        "width": width,
        "learning_rate": rate,
        "parameters": 70 * width**2,
        "tokens": 8_000_000,
        "flops": 1e12 * width,
        "bits_per_byte": bits,
        "tuning_bits_per_byte": bits,
    }
    configuration = {"data": {"blake2b": text}, "scored": {"blake2b": text}}
    return make_record(scaling.NAME, configuration, figures, seed=seed, seconds=1.0)


def test_the_table_of_the_docs_needs_every_size_and_rate_and_is_of_one_text(tmp_path, monkeypatch):
    monkeypatch.setattr(trained_tables, "RESULTS", tmp_path)
    path = tmp_path / "scaling.jsonl"
    append(made_up(24, 4e-3, 0, text="other", bits=0.1), path)
    for width in scaling.PLAN.widths:
        assert trained_tables.ROWS["scaling"]() is None
        for rate in scaling.PLAN.rates:
            append(made_up(width, rate, 0, bits=1 + 30 * (70 * width**2) ** -0.25 + (rate != 8e-3)), path)
        append(made_up(width, 8e-3, 1, bits=1.01 + 30 * (70 * width**2) ** -0.25), path)
    header, *rows = trained_tables.ROWS["scaling"]()
    assert header[0] == "width"
    assert [row[0] for row in rows[:5]] == [str(width) for width in scaling.PLAN.widths]
    assert {row[2] for row in rows[:5]} == {"0.008"}
    floor, exponent, ahead = (row[-1] for row in rows[5:])
    assert float(floor.split()[0]) == pytest.approx(1.005, abs=0.02)
    assert float(exponent.split()[0]) == pytest.approx(0.25, abs=0.01)
    assert "(" in ahead
    assert rows[-1][0] == "echo-1b, extrapolated"


def test_a_training_that_diverged_is_said_and_left_out(tmp_path):
    records = [made_up(width, 8e-3, 0, bits=3 - width / 100) for width in (24, 40, 64)]
    broken = dataclasses.replace(records[0], figures=records[0].figures | {"bits_per_byte": None})
    rows = scaling_report.rows([broken, *records[1:]])
    assert rows[1][-1] == "diverged"
    assert len(rows) == 4  # two sizes are too few to fit
    scaling_report.draw([broken, *records[1:]], tmp_path / "picture.png")
    assert imread(tmp_path / "picture.png").shape[1] > 800
