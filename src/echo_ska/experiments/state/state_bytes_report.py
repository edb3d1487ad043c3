"""What state-bytes prints and draws, from its records alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from echo_ska.evaluation.memory_plot import format_bytes, format_tokens
from echo_ska.experiments.trials.figures import label_lines, save
from echo_ska.experiments.trials.studies import BLUE, GREY, VERMILION
from echo_ska.training import RunRecord

KINDS = {"ska": ("SKA", BLUE), "mamba2": ("Mamba-2", GREY), "full_attention": ("twin's KV cache", VERMILION)}
STORED = "fp32"
CACHED = "bf16"
"""A KV cache is usually kept in half precision; SKA's sums are float64 and Mamba-2's scan float32 in either."""


def length_rows(records: Sequence[RunRecord]) -> list[list[str]]:
    """A header and a row a preset, dtype and every third length."""
    rows = [["preset", "runs in", "tokens", "SKA", "Mamba-2", "twin's KV cache", "KV cache : SKA", "twin : Echo"]]
    for record in ordered(records):
        figures = record.figures
        name, dtype = record.configuration["preset"], record.configuration["dtype"]
        for length, echo in list(figures["model"]["state_bytes"].items())[::-1][::3][::-1]:
            twin = figures["control"]["state_bytes"][length]
            sizes = [format_bytes(echo["ska"]), format_bytes(echo["mamba2"]), format_bytes(twin["full_attention"])]
            ratios = [figures["ratio_of_kv_cache_to_ska"][length], figures["ratio"][length]]
            measured = int(length) in figures["model"]["measured_at"]
            tokens = f"{int(length):,}" + (" (live)" if measured else "")
            rows.append([name, dtype, tokens, *sizes, *(_ratio(ratio) for ratio in ratios)])
    return rows


def part_rows(records: Sequence[RunRecord]) -> list[list[str]]:
    """A header and a row a preset: one SKA layer's live state by part, and the formula's bytes."""
    chosen = [record for record in ordered(records) if record.configuration["dtype"] == STORED]
    names = list(chosen[0].figures["ska"]["bytes"])
    header = ["preset", "heads, rank", *(name.replace("_", " ") for name in names), "one layer, live"]
    rows = [[*header, "formula at 8 bytes", "at 4 bytes"]]
    for record in chosen:
        ska = record.figures["ska"]
        formula = ska["heads"] * ska["formula_numbers"]
        sizes = [*ska["bytes"].values(), sum(ska["bytes"].values()), 8 * formula, 4 * formula]
        label = f"{ska['heads']}, {ska['rank']}"
        rows.append([record.configuration["preset"], label, *(f"{size:,}" for size in sizes)])
    return rows


def ladder_rows(ladder: Mapping[str, int], records: Sequence[RunRecord]) -> list[list[str]]:
    """A header and a row for every way to count, the last ones from the live state of echo-180m if it is recorded."""
    rows = [["what is counted", "bytes", "", "KV cache of two layers : this"]]
    counted = dict(ladder) | live_rungs(records)
    cache = ladder["KV cache, two layers"]
    ordered_rungs = sorted(counted.items(), key=lambda rung: rung[1])
    return rows + [[name, f"{size:,}", format_bytes(size), _ratio(cache / size)] for name, size in ordered_rungs]


def live_rungs(records: Sequence[RunRecord]) -> dict[str, int]:
    """What echo-180m keeps as it is stored: its SKA layers, and all of its layers."""
    for record in records:
        if record.configuration["preset"] == "echo-180m" and record.configuration["dtype"] == CACHED:
            model = record.figures["model"]
            state = model["state_bytes"][str(max(model["measured_at"]))]
            return {"echo-180m's SKA layers, live": state["ska"], "echo-180m, Mamba-2 included, live": state["total"]}
    return {}


def ordered(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Smallest model first, then as the dtypes were recorded."""
    return sorted(records, key=lambda record: record.figures["model"]["parameters"])


def draw(records: Sequence[RunRecord], ladder: Mapping[str, int], path: Path) -> None:
    """Above, state against length for every preset; below, the published figures on one scale of bytes."""
    chosen = [record for record in ordered(records) if record.configuration["dtype"] == CACHED]
    figure = Figure(figsize=(max(9.0, 4.9 * len(chosen)), 8.2), layout="constrained")
    subfigures: Any = figure.subfigures(2, 1, height_ratios=(1.15, 1))
    upper, lower = subfigures
    upper.suptitle(
        "Bytes of one sequence's state; models run in bfloat16. Dots: sums of a live cache; dashed: 2r² + Pr + r + 1 "
        "a head at 4 bytes",
        x=0.01,
        ha="left",
        fontsize=11,
    )
    panels = upper.subplots(1, len(chosen), squeeze=False, sharey=True)[0]
    labels: list[tuple[Axes, dict[str, tuple[float, float]], dict[str, str]]] = []
    for axes, record in zip(panels, chosen, strict=True):
        labels.append(_lengths(axes, record))
    rungs = sorted((dict(ladder) | live_rungs(records)).items(), key=lambda rung: rung[1])
    axes = lower.subplots()
    for place, (name, size) in enumerate(rungs):
        published = "(the " in name
        colour = VERMILION if name.startswith("KV") else GREY if "Mamba-2" in name else BLUE
        axes.barh(place, size, left=0, height=0.62, color=colour, alpha=1.0 if published else 0.55)
        axes.text(size * 1.15, place, format_bytes(size), va="center", fontsize=10, color=colour)
    axes.set_yticks(range(len(rungs)), [name for name, _ in rungs], fontsize=10)
    axes.set_xscale("log")
    axes.set_xlim(1e4, 4 * rungs[-1][1])
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _round_bytes(value)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_title(
        "The published comparison, strong colours, and what stands between (logarithmic; cache of 131,072 tokens)",
        loc="left",
        fontsize=11,
    )
    figure.draw_without_rendering()  # settles the axes' places, which the labels need
    for panel, ends, colours in labels:
        label_lines(panel, ends, colours)
    save(figure, path)


def _lengths(axes: Axes, record: RunRecord) -> tuple[Axes, dict[str, tuple[float, float]], dict[str, str]]:
    """One preset's lines: dots where a live cache was summed; returns what `label_lines` needs."""
    model, control = record.figures["model"], record.figures["control"]
    lengths = [int(length) for length in model["state_bytes"]]
    ends: dict[str, tuple[float, float]] = {}
    colours = {}
    for kind, (title, colour) in KINDS.items():
        state = control["state_bytes"] if kind == "full_attention" else model["state_bytes"]
        sizes = [state[str(length)][kind] for length in lengths]
        axes.plot(lengths, sizes, color=colour, linewidth=2)
        live = [length for length in model["measured_at"] if length in lengths]
        axes.plot(live, [state[str(length)][kind] for length in live], "o", color=colour, markersize=6)
        label = f"{title}, {format_bytes(sizes[-1])}"
        ends[label], colours[label] = (lengths[-1], sizes[-1]), colour
    ska = record.figures["ska"]
    formula = 4 * ska["layers"] * ska["heads"] * ska["formula_numbers"]
    axes.plot(lengths, [formula] * len(lengths), color=BLUE, linewidth=1.2, linestyle=(0, (5, 3)))
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(lengths[::2], [format_tokens(length) for length in lengths[::2]])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _round_bytes(value)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlim(lengths[0] / 1.2, lengths[-1])
    axes.set_xlabel("tokens read")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_title(record.configuration["preset"], loc="left", fontsize=11)
    return axes, ends, colours


def _ratio(ratio: float) -> str:
    """1,085 or 16.4"""
    return f"{ratio:,.0f}" if ratio >= 99.95 else f"{ratio:.1f}"


def _round_bytes(value: float) -> str:
    """10 kB, 1 MB: a power of ten."""
    return format_bytes(10.0 ** round(math.log10(value))).replace(".00", "").replace(".0", "")
