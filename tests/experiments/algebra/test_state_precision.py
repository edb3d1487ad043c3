"""state-precision in small: every state fits its bytes, what is stored is rounded, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from matplotlib.image import imread
from study_runs import run_twice, written_table

from echo_ska.experiments.algebra import state_precision as experiment
from echo_ska.experiments.algebra import state_precision_report as report
from echo_ska.experiments.algebra.fixed_memories import delta_memory
from echo_ska.experiments.algebra.recall_map import draw_trials
from echo_ska.experiments.algebra.state_precision import MEMORIES, PRECISIONS, Cell

TINY = experiment.PrecisionSettings(rank=8, head_dim=16, loads=(1, 3), codewords=32, answers=128)


def accuracy(memory: str, precision: str, way: str, load: float = 3) -> float:
    generator = torch.Generator().manual_seed(1)
    return experiment.measure_cell(TINY, "random", Cell(memory, precision, way, load), generator)["accuracy"]


@pytest.mark.parametrize("memory", MEMORIES.values(), ids=MEMORIES)
def test_every_state_fits_into_the_bytes_and_the_next_rank_does_not(memory):
    assert TINY.bytes == 4 * (8 * 9 // 2 + 16 * 8)
    for precision in PRECISIONS.values():
        rank = TINY.rank_of(memory, precision)
        for size, fits in ((rank, True), (rank + 1, False)):
            scales = sum(rows for rows, _ in memory.shapes(size, 16)) * precision.row_size
            assert (precision.size * memory.numbers(size, 16) + scales <= TINY.bytes) is fits
    assert TINY.rank_of(MEMORIES["SKA"], PRECISIONS["float32"]) == 8


def test_numbers_are_what_their_bits_can_say():
    numbers = torch.randn(3, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for name, precision in PRECISIONS.items():
        rounded = precision.rounded(numbers)
        assert torch.equal(precision.rounded(rounded), rounded), name  # what is stored already stays
        if name == "int8":
            levels = rounded / (numbers.abs().amax(-1, keepdim=True) / 127)
            assert (levels - levels.round()).abs().max() < 1e-4
            assert levels.abs().max() <= 127 + 1e-4
        else:
            assert torch.equal(rounded, numbers.to(getattr(torch, name)).double())
    nothing = torch.zeros(2, 3, dtype=torch.float64)
    assert torch.equal(PRECISIONS["int8"].rounded(nothing), nothing)


@pytest.mark.parametrize("memory", MEMORIES)
def test_what_rounds_nothing_away_is_the_same_in_every_way(memory):
    assert len({accuracy(memory, "float64", way) for way in experiment.WAYS}) == 1


def test_deltas_state_can_be_gone_on_from():
    trials = draw_trials("random", TINY.map_settings(), 12, 8, torch.Generator().manual_seed(0))
    values = torch.randn(*trials.keys.shape[:2], 16, dtype=torch.float64)
    whole = delta_memory(trials.keys, values, 0.4)
    first = delta_memory(trials.keys[:, :5], values[:, :5], 0.4)
    assert torch.allclose(delta_memory(trials.keys[:, 5:], values[:, 5:], 0.4, first), whole, atol=1e-12)


def test_the_bytes_that_are_saved_raise_the_recall_and_rounding_alone_costs_some():
    for memory in MEMORIES:
        assert accuracy(memory, "bfloat16", "always") > accuracy(memory, "float32", "always")
    coarse = experiment.Precision(4, lambda numbers: (numbers * 2).round() / 2)
    PRECISIONS["coarse"] = coarse
    try:
        assert accuracy("SKA", "coarse", "always") < accuracy("SKA", "float32", "always") - 0.1
    finally:
        del PRECISIONS["coarse"]


def test_a_memory_without_a_factor_answers_nothing_and_the_others_do() -> None:
    trials = draw_trials("random", TINY.map_settings(), 4, 8, torch.Generator().manual_seed(0))
    codebook = torch.nn.functional.normalize(torch.randn(32, 16, dtype=torch.float64), dim=-1)
    fill = {"memory": MEMORIES["SKA"], "precision": PRECISIONS["float64"], "every": None, "codebook": codebook}
    upper, moment = experiment.filled(trials, 1.0, **fill)
    assert experiment.right_answers((upper, moment), trials, MEMORIES["SKA"], 0.01, codebook) == 1
    upper[0] = -torch.eye(8)
    broken = experiment.right_answers((upper, moment), trials, MEMORIES["SKA"], 0.01, codebook)
    assert broken == pytest.approx(1 - 1 / len(upper))
    assert experiment.right_answers((upper - 9 * torch.eye(8), moment), trials, MEMORIES["SKA"], 0.01, codebook) == 0


def test_it_resumes_and_its_tables_and_picture_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [experiment.kind_run(TINY, kind, 0) for kind in ("random", "correlated")]
    records = run_twice(experiment.NAME, runs, tmp_path, monkeypatch)
    header, *rows = written_table("state-precision")
    assert header == ["keys", "memory", "stored as", "rank", "N = 8", "N = 24"]
    assert len(rows) == 2 * len(MEMORIES) * len(PRECISIONS)
    assert [row[0] for row in written_table("state-precision-lost")[1:]] == list(MEMORIES)
    report.draw(records, tmp_path / "picture.png")
    assert imread(tmp_path / "picture.png").shape[1] > 700
