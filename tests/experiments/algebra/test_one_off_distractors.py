"""one-off-distractors in small: a filtered one-off key reads what came after it; modes decay as |lambda|^K."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from matplotlib.image import imread
from study_runs import run_twice, written_table

from echo_ska.experiments.algebra import one_off_distractors as experiment
from echo_ska.experiments.algebra import one_off_report as report

TINY = experiment.DistractorSettings(rank=8, persistent=2, length=256, one_offs=(2, 8, 24, 60), mode_length=4096)


@pytest.fixture(scope="module")
def few() -> dict:
    """Two one-off keys at right angles to all else."""
    generator = torch.Generator().manual_seed(0)
    series = experiment.turning_series(TINY, 2, "apart", generator)
    return experiment.measure(series, TINY, 0.1, generator)


def test_one_off_keys_stand_alone_and_the_clock_goes_on() -> None:
    series = experiment.turning_series(TINY, 60, "apart", torch.Generator().manual_seed(0))
    assert len(series.one_off) == 60
    assert int(series.one_off.diff().min()) >= 2
    torch.testing.assert_close(series.keys.norm(dim=1), torch.ones(256).double())
    persistent = torch.ones(256, dtype=torch.bool)
    persistent[series.one_off] = False
    assert float((series.keys[persistent] @ series.keys[series.one_off].mT).abs().max()) < 1e-12
    assert torch.equal(series.values[persistent], series.clock[:256][persistent])
    assert int(torch.linalg.matrix_rank(series.keys[persistent])) == 2


def test_ridge_regression_reads_a_one_off_key_itself_and_a_power_what_came_after(few: dict) -> None:
    plain, once, blended = (few[name]["one_off"] for name in ("K=0", "K=1", "K=2 blended"))
    assert plain[report.AT_MATCH] == pytest.approx(1 / 1.1, abs=0.05)  # its leverage: a direction of its own, ridge 0.1
    assert abs(plain[report.AHEAD]) < 1e-6
    assert abs(once[report.AT_MATCH]) < 0.01
    assert once[report.AHEAD] == pytest.approx(few["leverage"], abs=0.05)
    assert once[report.READ] > 0.9 * plain[report.READ]  # nothing is suppressed: another value is read
    assert blended[report.AT_MATCH] == pytest.approx(plain[report.AT_MATCH] / 2, abs=0.02)


def test_persistent_keys_survive_every_power(few: dict) -> None:
    for power in range(5):
        assert few[f"K={power}"]["persistent"][report.AHEAD] > 0.9
    assert few["moduli"][0] > 0.97 > 0.1 > few["moduli"][1]


def test_modes_decay_with_their_modulus() -> None:
    kept = experiment.measure_modes(TINY, torch.Generator().manual_seed(0))
    for power in range(5):
        expected = [modulus**power for modulus in TINY.moduli]
        assert kept[f"K={power}"] == pytest.approx(expected, abs=0.06)


def test_it_resumes_and_its_tables_and_picture_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [experiment.seed_run(TINY, seed) for seed in range(2)]
    records = run_twice(experiment.NAME, runs, tmp_path, monkeypatch)
    header, first, predicted, *_ = written_table("one-off-distractors")
    assert header[2:] == list(experiment.FILTERS)
    assert first[:2] == ["2 of 256, apart", "one-off key: its own value"]
    assert float(predicted[2]) == pytest.approx(float(first[2]), abs=0.05)
    assert len(written_table("one-off-distractors-modes")) == 1 + len(TINY.moduli)
    report.draw(records, tmp_path / "picture.png")
    assert imread(tmp_path / "picture.png").shape[1] > 800
