"""MFU is operations over the peak, or is not there; memory is measured."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

from echo_ska.training import Throughput, console_reporter
from echo_ska.training.reporter import format_figures

CPU = torch.device("cpu")


def test_mfu_is_model_operations_over_the_peak():
    figures = Throughput(6e9, 312e12, CPU).added_to({"loss": 1.0, "tokens_per_second": 13_000.0})
    assert figures["mfu"] == pytest.approx(6e9 * 13_000 / 312e12)
    assert figures["loss"] == 1.0
    assert "MFU 25.0 %" in format_figures(figures)


@pytest.mark.parametrize(("flops", "peak"), [(None, 312e12), (6e9, None)])
def test_no_mfu_is_made_up(flops, peak):
    figures = Throughput(flops, peak, CPU).added_to({"tokens_per_second": 13_000.0})
    assert "mfu" not in figures
    assert "MFU" not in format_figures(figures)


def test_peak_memory_is_what_the_process_has_had():
    throughput = Throughput(None, None, CPU)
    before = throughput.added_to({"tokens_per_second": 1.0})["peak_memory_bytes"]
    block = torch.ones(int(before) // 8 + 10_000_000)  # half as much again in float32, touched
    after = throughput.added_to({"tokens_per_second": 1.0})["peak_memory_bytes"]
    assert after - before > 0.2 * 4 * len(block)
    assert f"{after / 1e9:.2f} GB at most" in format_figures({"peak_memory_bytes": after})


def test_figures_without_a_speed_stay_as_they_are():
    figures = {"evaluation": {"bits_per_byte": 2.0}, "step": 3}
    assert Throughput(1.0, 1.0, CPU).added_to(figures) == figures
    assert Throughput(1.0, 1.0, CPU).added_to({}) == {}


@pytest.mark.parametrize("terminal", [True, False])
def test_the_progress_shows_both(terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=160)
    with console_reporter("training", console, Throughput(1e3, 1e6, CPU)) as reporter:
        reporter.update(0, 2, {})
        reporter.update(2, 2, {"loss": 1.0, "tokens_per_second": 500.0})
    assert "500 tokens/s  MFU 50.0 %" in console.file.getvalue()
    assert "GB at most" in console.file.getvalue()
