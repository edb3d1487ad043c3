"""state-bytes in small: the live state, part by part, against the formula; what the published figure counts."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread
from rich.console import Console
from study_runs import run_twice, written_table

from echo_ska.evaluation.memory import MemoryComparison, compare_with_control
from echo_ska.experiments.state import state_bytes as experiment
from echo_ska.experiments.state import state_bytes_report as report
from echo_ska.models import EchoCache, EchoForCausalLM
from echo_ska.models.presets import preset

LENGTHS = (64, 4096)


@pytest.fixture(scope="module")
def comparison() -> MemoryComparison:
    return compare_with_control("echo-1m", LENGTHS)


def test_the_parts_are_those_of_a_live_cache(comparison: MemoryComparison) -> None:
    config = preset("echo-1m")
    model, cache = EchoForCausalLM(config).eval(), EchoCache(config)
    model.prefill(torch.zeros(1, 64, dtype=torch.int64), cache)
    cache.compact()
    parts = experiment.ska_parts(config, "fp32", comparison)
    assert parts["layers"] * sum(parts["bytes"].values()) == cache.bytes_by_kind()["ska"]
    state = cache.layers[config.layer_types.index("ska")].state
    assert state is not None
    live = {name.rpartition(".")[2]: t.numel() * t.element_size() for name, t in state.tensors().items()}
    assert parts["bytes"] == live


def test_the_formula_lacks_only_a_second_key_the_counts_and_the_convolution(comparison: MemoryComparison) -> None:
    parts = experiment.ska_parts(preset("echo-1m"), "fp32", comparison)
    sizes, heads, rank = parts["bytes"], parts["heads"], parts["rank"]
    sums = sum(sizes[name] for name in ("gram", "lag_moment", "value_moment", "previous_key"))
    assert sums + 8 * heads == 8 * heads * parts["formula_numbers"]  # the formula's "+ 1" is a count for every head
    assert sizes["first_key"] == 8 * heads * rank
    assert sizes["count"] == sizes["position"] == 8


def test_parts_that_do_not_add_up_are_refused(comparison: MemoryComparison) -> None:
    with pytest.raises(ArithmeticError, match="one of them is wrong"):
        experiment.ska_parts(preset("echo-1m", rank=8), "fp32", comparison)


def test_the_published_figure_is_one_head_in_two_layers() -> None:
    ladder = list(experiment.PaperFigure().ladder().values())
    assert ladder == [39_652, 79_304, 741_984, 384 * 2**20, 768 * 2**20]
    assert round(79_304 / 1024) == 77


def test_more_seeds_than_one_are_refused() -> None:
    with pytest.raises(ValueError, match="leave --seeds out"):
        experiment.run(Console(file=io.StringIO()), seeds=3)


def test_it_resumes_and_its_tables_and_picture_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [experiment.preset_run("echo-1m", dtype, LENGTHS) for dtype in ("fp32", "bf16")]
    records = run_twice(experiment.NAME, runs, tmp_path, monkeypatch)
    assert written_table("state-bytes")[1][:3] == ["echo-1m", "fp32", "4,096"]
    assert written_table("state-bytes-parts")[1][1] == "4, 24"
    assert "1,085" in [row[3] for row in written_table("state-bytes-ladder")]
    report.draw(records, experiment.PaperFigure().ladder(), tmp_path / "picture.png")
    assert imread(tmp_path / "picture.png").shape[1] > 800
