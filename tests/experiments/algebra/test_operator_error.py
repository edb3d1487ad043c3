"""operator-error in small: what the fitted operator tends to, how fast, and the bound that always holds."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread
from study_runs import run_twice, written_table

from echo_ska.algebra import SufficientStatistics
from echo_ska.experiments.algebra import operator_error as experiment
from echo_ska.experiments.algebra import operator_error_report as report

TINY = experiment.OperatorSettings(rank=4, lengths=tuple(2**exponent for exponent in range(5, 13)))


@pytest.fixture(scope="module")
def measured() -> dict[str, dict]:
    return {
        name: experiment.measure(simulate(TINY, torch.Generator().manual_seed(3)), TINY)
        for name, simulate in experiment.SYSTEMS.items()
    }


@pytest.mark.parametrize("system", experiment.SYSTEMS)
def test_the_distance_to_the_limit_falls_as_predicted(measured: dict, system: str) -> None:
    figures = measured[system]
    for noise in TINY.noises[1:]:
        rows = figures["rows"][f"{noise:g}, 0.001"]
        assert rows[-1][report.DISTANCE] < 0.25 * rows[0][report.DISTANCE]  # 128 times the keys: a factor of 11
        slope = report.slope(TINY.lengths, rows)
        assert slope is not None
        assert -0.8 < slope < -0.3
        if figures["rate"] is not None:
            place = TINY.noises.index(noise)
            predicted = figures["rate"][place] / math.sqrt(TINY.lengths[-1])
            assert 0.4 * predicted < rows[-1][report.NOISE] < 1.5 * predicted


def test_the_bound_holds_everywhere_and_the_parts_add_up(measured: dict) -> None:
    for figures in measured.values():
        for rows in figures["rows"].values():
            for error, distance, noise, ridge, last_key, bound in rows:
                assert error <= bound * 1.001  # four digits are kept
                assert distance <= (noise + ridge + last_key) * 1.001


def test_noise_on_the_sphere_and_in_the_keys_stays_as_bias(measured: dict) -> None:
    assert max(measured["linear"]["bias"]) == 0
    for system in ("sphere", "observed"):
        small, _, large = measured[system]["bias"]
        assert large > 10 * small > 0
        last = measured[system]["rows"][f"{TINY.noises[-1]:g}, 0.001"][-1]
        assert last[report.ERROR] == pytest.approx(large, abs=0.1)


def test_a_large_ridge_shrinks_the_operator() -> None:
    keys = torch.randn(1, 200, 1, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    statistics = SufficientStatistics.from_tokens(keys, keys)
    small, large = (experiment.fitted_operator(statistics, ridge) for ridge in (1e-9, 1e6))
    expected = statistics.lag_moment[0, 0] @ torch.linalg.inv(statistics.gram[0, 0])
    torch.testing.assert_close(small[0], expected, atol=1e-9, rtol=0)
    assert float(large.norm()) < 1e-3 * float(small.norm())


def test_a_true_linear_series_gives_its_own_operator() -> None:
    turn, moduli = experiment.rotation(4, torch.tensor([0.99, 1.0]).double(), torch.Generator().manual_seed(1))
    torch.testing.assert_close(torch.linalg.eigvals(turn).abs().sort().values, moduli.sort().values)
    keys = [torch.tensor([1.0, 2.0, -1.0, 0.5]).double()]
    for _ in range(500):
        keys.append(turn @ keys[-1])
    statistics = SufficientStatistics.from_tokens(torch.stack(keys)[None, :, None], torch.zeros(1, 501, 1, 1).double())
    fitted = experiment.fitted_operator(statistics, 1e-9)
    assert float((fitted[0] - turn).norm()) < 0.05  # the last key, which has no successor, stands in G


def test_it_resumes_and_its_table_and_picture_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [experiment.seed_run(TINY, seed) for seed in range(2)]
    records = run_twice(experiment.NAME, runs, tmp_path, monkeypatch)
    header, *rows = written_table("operator-error")
    assert "error at 4,096" in header
    assert len(rows) == len(experiment.SYSTEMS) * len(TINY.noises) * len(TINY.ridges)
    report.draw(records, tmp_path / "picture.png")
    assert imread(tmp_path / "picture.png").shape[1] > 800
