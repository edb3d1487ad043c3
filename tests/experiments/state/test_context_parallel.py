"""context-parallel in small: run for real over two processes, recorded once, its tables and picture written."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from matplotlib.image import imread
from rich.console import Console
from study_runs import written_table

from echo_ska.experiments import tables
from echo_ska.experiments.state import context_parallel as experiment
from echo_ska.experiments.state import context_parallel_report as report
from echo_ska.experiments.trials.recorded import run_missing
from echo_ska.models.presets import preset
from echo_ska.nn.registry import MIXERS
from echo_ska.training.records import read


def test_what_is_sent_is_a_state_and_differences_are_rounding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, screen = tmp_path / f"{experiment.NAME}.jsonl", io.StringIO()
    runs = [experiment.split_run(64, 2)]
    records = run_missing(Console(file=screen), experiment.NAME, runs, path, experiment.in_turn)
    assert screen.getvalue().count("finished after") == 1
    figures = records[0].figures
    assert set(figures["layers"]) == {"mamba2", "ska"}
    for phases in figures["layers"].values():
        assert phases["forward"] == phases["backward"]  # the other way
        assert phases["forward"]["messages"] == 2  # the convolution's inputs, and one round of the scan
    state = preset("echo-1m")
    mixers = {kind: MIXERS[kind](state) for kind in figures["layers"]}
    for kind, extra in (("ska", -8), ("mamba2", 4 * mixers["mamba2"].heads)):
        # One message of the tail and one of the rest of the state: SKA's position is its count, Mamba-2 has a decay.
        assert figures["layers"][kind]["forward"]["bytes"] == mixers[kind].state_bytes(64) + extra
    assert max(figures["difference"].values()) < 1e-3
    assert figures["difference"]["logits"] < 1e-5

    assert run_missing(Console(file=screen), experiment.NAME, runs, path, experiment.in_turn) == records
    assert len(read(path)) == 1
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert [row[:3] for row in written_table("context-parallel")[1:]] == [["SKA", "2", "64"], ["Mamba-2", "2", "64"]]
    assert [row[1] for row in written_table("context-parallel-difference")[1:]] == ["64"]
    report.draw(records, tmp_path / "picture.png")
    assert imread(tmp_path / "picture.png").shape[1] > 800


def test_attention_gathers_the_keys_and_values_of_all_other_processes() -> None:
    config = preset("echo-1m")
    assert experiment.gathered_bytes(config, 1024, 4) == 3 * 1024 * 2 * config.num_heads * config.head_dim * 4


def test_more_seeds_than_one_are_refused() -> None:
    with pytest.raises(ValueError, match="leave --seeds out"):
        experiment.run(Console(file=io.StringIO()), seeds=3)
