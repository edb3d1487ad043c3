"""What operator-error prints and draws, from its records alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from echo_ska.experiments.trials.figures import label_lines, length_axis, save
from echo_ska.experiments.trials.studies import BLUE, GREEN, GREY, VERMILION
from echo_ska.training import RunRecord

ERROR, DISTANCE, NOISE, RIDGE, LAST_KEY, BOUND = range(6)
"""Places in a row of a record (`operator_error.measure`)."""

TITLES = {
    "linear": "linear: noise drives the system",
    "sphere": "sphere: keys of unit norm",
    "observed": "observed: noise in the keys alone",
}


def median_rows(records: Sequence[RunRecord], system: str, noise: float, ridge: float) -> list[list[float]]:
    """By length, the medians over seeds of a record's six figures."""
    key = f"{noise:g}, {ridge:g}"
    seeds = [record.figures["systems"][system]["rows"][key] for record in records]
    return [[statistics.median(values) for values in zip(*rows, strict=True)] for rows in zip(*seeds, strict=True)]


def slope(lengths: Sequence[int], rows: Sequence[Sequence[float]]) -> float | None:
    """Least-squares slope of log |K^ - limit| over log length, where noise is at least three times all else.

    None where fewer than three lengths are so.
    """
    points = [
        (math.log(length), math.log(row[DISTANCE]))
        for length, row in zip(lengths, rows, strict=True)
        if row[NOISE] >= 3 * (row[RIDGE] + row[LAST_KEY])
    ]
    return statistics.linear_regression(*zip(*points, strict=True)).slope if len(points) >= 3 else None


def table_rows(records: Sequence[RunRecord]) -> list[list[str]]:
    """A header and a row a system, noise and ridge."""
    configuration = records[0].configuration
    lengths = configuration["lengths"]
    shown = [lengths[0], lengths[len(lengths) // 2], lengths[-1]]
    header = ["keys", "noise", "ridge", *(f"error at {length:,}" for length in shown), "error left for ever", "slope"]
    rows = [[*header, "noise part at the end : predicted", "largest error : bound"]]
    for system in TITLES:
        for place, noise in enumerate(configuration["noises"]):
            for ridge in configuration["ridges"]:
                found = median_rows(records, system, noise, ridge)
                figures = [record.figures["systems"][system] for record in records]
                rate = figures[0]["rate"]
                predicted = "-"
                if rate is not None:
                    expected = statistics.median(figure["rate"][place] for figure in figures) / math.sqrt(lengths[-1])
                    predicted = f"{found[-1][NOISE] / expected:.2f}"
                fitted = slope(lengths, found)
                key = f"{noise:g}, {ridge:g}"
                tightest = max(row[ERROR] / row[BOUND] for figure in figures for row in figure["rows"][key])
                rows.append(
                    [
                        system,
                        f"{noise:g}",
                        f"{ridge:g}",
                        *(f"{found[lengths.index(length)][ERROR]:.3f}" for length in shown),
                        f"{statistics.median(figure['bias'][place] for figure in figures):.3f}",
                        "-" if fitted is None else f"{fitted:.2f}",
                        predicted,
                        f"{tightest:.2f}",
                    ]
                )
    return rows


def draw(records: Sequence[RunRecord], path: Path) -> None:
    """Errors against length: the three systems at ridge 1, and what the ridge does to the first."""
    configuration = records[0].configuration
    lengths, noises, ridges = (configuration[name] for name in ("lengths", "noises", "ridges"))
    middle = ridges[len(ridges) // 2]
    figure = Figure(figsize=(12.5, 8.4), layout="constrained")
    panels = figure.subplots(2, 2).flatten()
    ends: list[tuple[Axes, dict[str, tuple[float, float]], dict[str, str]]] = []
    for axes, (system, title) in zip(panels, TITLES.items(), strict=False):
        lines = {
            f"noise {noise:g}": (median_rows(records, system, noise, middle), colour)
            for noise, colour in zip(noises, (BLUE, GREEN, VERMILION), strict=True)
        }
        ends.append(_panel(axes, lengths, lines, f"{title}, ridge {middle:g}"))
        figures = [record.figures["systems"][system] for record in records]
        if figures[0]["rate"] is not None:
            for place, (_, colour) in enumerate(lines.values()):
                rate, bias = (statistics.median(f[name][place] for f in figures) for name in ("rate", "bias"))
                same = len(set(figures[0]["rate"])) == 1  # one prediction for every noise
                axes.plot(
                    lengths,
                    [bias + rate / math.sqrt(length) for length in lengths],
                    color="black" if same else colour,
                    linestyle=(0, (5, 3)),
                    linewidth=1,
                    alpha=0.8,
                )
    lines = {
        f"ridge {ridge:g}": (median_rows(records, "linear", noises[1], ridge), colour)
        for ridge, colour in zip(ridges, (GREY, GREEN, VERMILION), strict=True)
    }
    ends.append(_panel(panels[3], lengths, lines, f"linear, noise {noises[1]:g}: what the ridge does"))
    low = min(end[1] for _, places, _ in ends for end in places.values())
    for axes in panels:
        axes.set_ylim(10 ** (math.floor(4 * math.log10(low)) / 4), 8)
    figure.suptitle(
        "Error of the fitted operator, spectral norm (medians of "
        f"{len(records)} seeds). Solid: measured; dotted: bound; dashed: predicted for ridge 0, bias + c / sqrt(T)",
        x=0.01,
        ha="left",
        fontsize=11,
    )
    figure.draw_without_rendering()  # settles the axes' places, which the labels need
    for axes, places, colours in ends:
        label_lines(axes, places, colours)
    save(figure, path)


def _panel(
    axes: Axes, lengths: Sequence[int], lines: dict[str, tuple[list[list[float]], str]], title: str
) -> tuple[Axes, dict[str, tuple[float, float]], dict[str, str]]:
    """Draw errors and bounds; returns what `label_lines` needs."""
    for rows, colour in lines.values():
        axes.plot(lengths, [row[BOUND] for row in rows], color=colour, linewidth=1.2, linestyle=(0, (1, 2)))
        axes.plot(lengths, [row[ERROR] for row in rows], color=colour, linewidth=2, marker="o", markersize=4)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    length_axis(axes, lengths, "keys read, T")
    axes.set_xlim(lengths[0] / 1.15, lengths[-1] * 1.05)
    axes.set_title(title, loc="left", fontsize=11)
    ends = {name: (float(lengths[-1]), rows[-1][ERROR]) for name, (rows, _) in lines.items()}
    return axes, ends, {name: colour for name, (_, colour) in lines.items()}
