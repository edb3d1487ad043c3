"""The demo in small: what it returns, writes, prints and draws."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from in_process import run_here
from matplotlib.image import imread
from rich.console import Console

from echo_ska.experiments.demo import run as demo_module
from echo_ska.experiments.demo.recall import RECALL_MODELS
from echo_ska.experiments.demo.run import DemoSettings, run_demo
from echo_ska.experiments.demo.text import TextModel
from echo_ska.experiments.trials.arms import NO_POSITIONS
from echo_ska.experiments.trials.figures import mean_with_range, percent, short_bytes, short_number

TINY = DemoSettings(
    models=tuple(replace(model, steps=2, batch_size=2) for model in RECALL_MODELS),
    text=TextModel(
        hidden_size=32,
        num_heads=2,
        steps=2,
        batch_size=2,
        length=32,
        bytes_before=100,
        bytes_after=300,
        segment_length=64,
    ),
    doublings=1,
    minimum_sequences=2,
    tokens_a_length=64,
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path, str]:
    folder, screen = tmp_path_factory.mktemp("demo"), io.StringIO()
    console = Console(file=screen, width=80)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_module, "run_jobs", lambda jobs, console: run_here(jobs))
        result = run_demo(
            output=folder / "out", json_path=folder / "made" / "demo.json", console=console, settings=TINY
        )
    return result, folder, screen.getvalue()


def test_the_json_has_the_promised_form(demo: tuple[dict, Path, str]) -> None:
    result, folder, _ = demo
    written = json.loads((folder / "made" / "demo.json").read_text())
    assert written == json.loads(json.dumps(result))
    assert isinstance(written["seconds"], float)
    assert [model["name"] for model in written["models"]] == ["ssm", "ssm+attention", NO_POSITIONS, "ssm+ska"]
    for model in written["models"]:
        assert isinstance(model["parameters"], int)
        assert list(model["accuracy"]) == list(model["state_bytes"]) == ["64", "128"]
        assert all(0 <= value <= 1 for value in model["accuracy"].values())
        assert all(isinstance(value, int) for value in model["state_bytes"].values())
    text = written["text"]
    assert 0 < text["bits_per_byte_after"] < text["bits_per_byte_before"] + 1
    assert (text["bytes_before"], text["bytes_after"]) == (99, 299)
    assert text["state_bytes"] == text["state_bytes_after_first_segment"] > 0
    assert written["chance"] == 1 / 32
    assert {"hardware", "versions", "commit", "settings", "answers"} <= set(written)


def test_no_partial_file_is_left(demo: tuple[dict, Path, str]) -> None:
    _, folder, _ = demo
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert files == ["made/demo.json", "out/recall.png"]


def test_the_picture_is_whole(demo: tuple[dict, Path, str]) -> None:
    assert imread(demo[1] / "out" / "recall.png").shape[1] > 1000


def test_what_is_printed_is_what_was_measured(demo: tuple[dict, Path, str]) -> None:
    result, _, printed = demo
    for model in result["models"]:
        assert f"{model['parameters']:,}" in printed
        for length in ("64", "128"):
            assert f"{percent(model['accuracy'][length])} %" in printed
            assert f"{model['state_bytes'][length]:,}" in printed
    assert f"{result['text']['bits_per_byte_after']:.3f} bits per byte" in printed
    assert "128 (2x)" in printed
    assert max(map(len, printed.splitlines())) <= 80 + len("Figures: ") + len(str(demo[1]))


def test_outputs_that_cannot_be_written_are_refused_before_any_work(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    console = Console(file=io.StringIO())
    with pytest.raises(ValueError, match="Nothing can be written in"):
        run_demo(output=file / "out", json_path=None, console=console)
    with pytest.raises(ValueError, match="is a folder"):
        run_demo(output=tmp_path / "out", json_path=tmp_path, console=console)


def test_a_range_is_shown_where_seeds_differ_as_shown() -> None:
    assert mean_with_range([0.981, 0.999, 0.972], percent) == "98.4 (97.2-99.9)"
    assert mean_with_range([0.98111, 0.98112], percent) == mean_with_range([0.98111], percent) == "98.1"
    assert mean_with_range([0.7, -0.3, 1.7], "{:.1f}".format) == "0.7 (-0.3 to 1.7)"
    assert mean_with_range([2.0514, 2.0486], "{:.3f}".format) == "2.050 (2.049-2.051)"
    assert mean_with_range([], percent) == ""


def test_numbers_are_shown_short_and_never_flattered() -> None:
    assert [percent(value) for value in (1.0, 0.99999, 0.29)] == ["100.0", "99.9", "29.0"]
    assert [short_number(value) for value in (64, 100, 4096, 1 << 20)] == ["64", "100", "4k", "1M"]
    assert [short_bytes(value) for value in (12, 38_672, 2_119_688)] == ["12 B", "38.7 kB", "2.12 MB"]
