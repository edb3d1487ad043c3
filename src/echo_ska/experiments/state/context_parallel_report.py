"""What context-parallel prints and draws, from its records alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from echo_ska.evaluation.memory_plot import format_bytes
from echo_ska.experiments.trials.figures import label_lines, length_axis, save
from echo_ska.experiments.trials.studies import BLUE, GREY, VERMILION
from echo_ska.training import RunRecord

KINDS = {"ska": ("SKA", BLUE), "mamba2": ("Mamba-2", GREY)}
ATTENTION = "keys and values of attention"


def ordered(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Fewest processes first, then the shortest."""
    return sorted(records, key=lambda record: (record.configuration["processes"], record.configuration["tokens"]))


def byte_rows(records: Sequence[RunRecord]) -> list[list[str]]:
    """A header, and a row for every kind of layer, number of processes and length."""
    rows = [["layer", "processes", "tokens", "messages", "forward", "backward", "attention", "ratio"]]
    for kind, (title, _) in KINDS.items():
        for record in ordered(records):
            phases, gathered = record.figures["layers"][kind], record.figures["attention_bytes"]
            forward, backward = phases["forward"], phases["backward"]
            where = [str(record.configuration["processes"]), f"{record.configuration['tokens']:,}"]
            sizes = [f"{size:,}" for size in (forward["messages"], forward["bytes"], backward["bytes"], gathered)]
            rows.append([title, *where, *sizes, f"{gathered / forward['bytes']:,.1f}"])
    return rows


def difference_rows(records: Sequence[RunRecord]) -> list[list[str]]:
    """A header, and how far results are from one process's, for every number of processes and length."""
    rows = [["processes", "tokens", "logits", "loss", "gradients"]]
    for record in ordered(records):
        found = [f"{record.figures['difference'][name]:.1e}" for name in ("logits", "loss", "gradients")]
        rows.append([str(record.configuration["processes"]), f"{record.configuration['tokens']:,}", *found])
    return rows


def draw(records: Sequence[RunRecord], path: Path) -> None:
    """Bytes that a layer sends against the length, a panel for every number of processes."""
    worlds = sorted({record.configuration["processes"] for record in records})
    figure = Figure(figsize=(6.2 * len(worlds), 4.4), layout="constrained")
    panels: Any = figure.subplots(1, len(worlds), squeeze=False, sharey=True)
    labels = []
    for axes, world in zip(panels[0], worlds, strict=True):
        chosen = [record for record in ordered(records) if record.configuration["processes"] == world]
        lengths = [record.configuration["tokens"] for record in chosen]
        lines = {
            title: (colour, [record.figures["layers"][kind]["forward"]["bytes"] for record in chosen])
            for kind, (title, colour) in KINDS.items()
        }
        lines[f"{ATTENTION}\n(formula)"] = VERMILION, [record.figures["attention_bytes"] for record in chosen]
        ends, colours = {}, {}
        for title, (colour, sizes) in lines.items():
            dashed = "--" if colour == VERMILION else "-"
            axes.plot(lengths, sizes, dashed, color=colour, linewidth=2, marker="" if colour == VERMILION else "o")
            label = f"{title}, {format_bytes(sizes[-1])}"
            ends[label], colours[label] = (lengths[-1], sizes[-1]), colour
        length_axis(axes, lengths)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_bytes(10.0 ** round(math.log10(value)))))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_title(f"{world} processes: bytes that one layer sends, forward", loc="left", fontsize=11)
        labels.append((axes, ends, colours))
    figure.draw_without_rendering()  # settles the axes' places, which the labels need
    for axes, ends, colours in labels:
        label_lines(axes, ends, colours)
    save(figure, path)
