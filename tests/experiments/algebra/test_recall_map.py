"""recall-map in small: trials are what they say, tuning is apart from asking, and the map says who wins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread
from study_runs import run_twice, written_table

from echo_ska.experiments.algebra import recall_map as experiment
from echo_ska.experiments.algebra import recall_map_report as report

TINY = experiment.MapSettings(
    rank=8, widths=(1, 2), loads=(1, 4), codewords=32, answers=256, ridges=(0.001, 1.0), steps=(0.1, 1.0)
)


def cell(kind: str, width: float, load: float, **changes: object) -> dict[str, float]:
    settings = replace(TINY, **changes)
    figures = experiment.measure_cell(settings, kind, width, load, torch.Generator().manual_seed(0))
    return dict(zip(report.FIGURES, figures, strict=True))


def trials(kind: str, pairs: int = 16, rank: int = 64) -> experiment.Trials:
    return experiment.draw_trials(kind, TINY, pairs, rank, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", experiment.KINDS)
def test_trials_have_unit_keys_and_answers_that_were_written(kind: str) -> None:
    drawn = trials(kind)
    for vectors in (drawn.keys, drawn.queries):
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(vectors.shape[:-1]).double())
    nearest = (drawn.queries @ drawn.keys.mT).argmax(-1)
    if kind != "rewritten":
        assert torch.equal(drawn.stored.gather(1, nearest), drawn.wanted)


def test_cosines_are_those_that_are_promised() -> None:
    def mean_cosine(keys: torch.Tensor, others: torch.Tensor) -> float:
        return float((keys * others).sum(-1).mean())

    correlated, contextual, noisy = (trials(kind, 64, 256) for kind in ("correlated", "contextual", "noisy queries"))
    assert mean_cosine(correlated.keys[:, 0], correlated.keys[:, 1]) == pytest.approx(0.5, abs=0.1)
    assert mean_cosine(contextual.keys[:, 0], contextual.keys[:, 3]) == pytest.approx(0.75, abs=0.1)
    assert mean_cosine(contextual.keys[:, 0], contextual.keys[:, 4]) == pytest.approx(0, abs=0.1)
    assert mean_cosine(noisy.keys, noisy.queries) == pytest.approx(0.8)


def test_half_of_the_rewritten_keys_are_written_twice_and_the_later_value_is_wanted() -> None:
    drawn = trials("rewritten")
    assert drawn.keys.shape[1] == 24
    for key, wanted in zip(drawn.queries[0], drawn.wanted[0], strict=True):
        times = (drawn.keys[0] @ key > 0.999).nonzero().squeeze(1)
        assert drawn.stored[0, times[-1]] == wanted
    repeats = (drawn.queries[0] @ drawn.keys[0].mT > 0.999).sum(1)
    assert sorted(repeats.tolist()) == [1] * 8 + [2] * 8


def test_ridge_regression_recalls_up_to_its_rank_whatever_the_keys_and_overwriting_is_delta_s() -> None:
    for kind in ("random", "correlated", "contextual"):
        found = cell(kind, 2, 1)
        assert found["ska"] > 0.97
        assert found["ska_ridge"] == 0.001
    assert cell("correlated", 2, 1)["linear"] < 0.7
    rewritten = cell("rewritten", 2, 0.5, rank=32)
    assert rewritten["delta"] > rewritten["ska"] + 0.1


def test_the_choice_is_the_best_of_what_is_offered() -> None:
    free, bound = cell("random", 1, 4), cell("random", 1, 4, ridges=(1e6,), steps=(1.0,))
    assert free["ska"] >= bound["ska"] - 0.03
    assert free["delta"] >= bound["delta"] - 0.03
    assert bound["ska_ridge"] == 1e6
    assert bound["ska_error"] == pytest.approx(1, abs=0.01)  # nothing is read at such a ridge


def test_the_rule_and_the_crossing_are_read_off_a_map() -> None:
    cells = {
        (1.0, load): {"ska": accuracy, "lagged": 0.0, "linear": 0.5}
        for load, accuracy in {1.0: 0.5, 2.0: 0.6, 4.0: 0.4}.items()
    }
    assert report.crossing(cells, 1.0, "ska") == "3.0"
    assert report.crossing(cells, 1.0, "lagged") == "nowhere ahead"


def test_an_unknown_kind_of_keys_is_refused() -> None:
    with pytest.raises(ValueError, match="choose from random, correlated"):
        trials("lost")


def test_it_resumes_and_its_tables_and_picture_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [experiment.kind_run(TINY, kind, 0) for kind in ("random", "rewritten")]
    records = run_twice(experiment.NAME, runs, tmp_path, monkeypatch)
    for name in ("recall-map", "recall-map-lagged"):
        header, *rows = written_table(name)
        assert header[2:] == ["N = 1 r", "N = 4 r"]
        assert [row[0] for row in rows] == ["random", "random", "rewritten", "rewritten"]
    assert [row[2] for row in written_table("recall-map-rule")[1:3]] == ["3.0", "5.0"]
    assert {row[1] for row in written_table("recall-map-accuracy")[1:]} >= {"SKA, power 0", "DeltaNet"}
    assert written_table("recall-map-chosen")[1][1] == "SKA's ridge"
    report.draw(records, tmp_path / "picture.png")
    assert imread(tmp_path / "picture.png").shape[1] > 800
