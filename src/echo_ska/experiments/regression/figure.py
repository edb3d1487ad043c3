"""The picture of in-context-regression: distance to ridge along training and by pairs, one layer above, two below."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from echo_ska.experiments.regression.model import BY_HAND
from echo_ska.experiments.regression.results import (
    CONTEXTS,
    PAIRS,
    SEEN,
    Results,
    figure_of,
)
from echo_ska.experiments.trials.figures import label_lines, save
from echo_ska.training import RunRecord

COLOURS = {
    "SKA, power 0": "#0072B2",
    "SKA, blended": "#56B4E9",
    "softmax": "#D55E00",
    "softmax, no positions": "#E69F00",
    "linear attention": "#595959",
    "linear, averaging": "#A6A6A6",
    "DeltaNet": "#009E73",
    "gated DeltaNet": "#7BC8A4",
    "MesaNet": "#AA4499",
    BY_HAND: "black",
    "best Hebbian read": "black",
}
"""Okabe and Ito's, kinds of memory alike in hue."""

LOWEST, HIGHEST = 2e-4, 10
"""What is drawn: one scale for all panels. (With one pair in context the two algorithms are the same.)"""


def draw(results: Results, path: Path) -> None:
    """Two panels a depth: along training, over the trained numbers of pairs; and by pairs, after the last step."""
    by_hand = results[BY_HAND, 1][0]
    depths = sorted({layers for arm, layers in results if arm != BY_HAND})
    figure = Figure(figsize=(12.5, 4.6 * len(depths)), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
    panels = figure.subplots(len(depths), 2, squeeze=False)
    ends: dict[Axes, dict[str, tuple[float, float]]] = {}
    for (along, by_pairs), depth in zip(panels, depths, strict=True):
        of_depth = {arm: records for (arm, layers), records in results.items() if layers == depth and arm != BY_HAND}
        name = f"{depth} layer{'s' * (depth > 1)}"
        ends[along] = _along(along, of_depth)
        ends[by_pairs] = _by_pairs(by_pairs, of_depth, by_hand)
        along.set_title(f"{name}, along training: 1-24 pairs in context", loc="left", fontsize=11)
        by_pairs.set_title(f"{name}, trained: by pairs in context", loc="left", fontsize=11)
        for axes in (along, by_pairs):
            axes.set_ylim(LOWEST, HIGHEST)
    figure.suptitle(
        "Mean squared distance to the best ridge regression on the same pairs, in units of the variance of W x\n"
        "(geometric means over seeds, bands over their range)",
        x=0.01,
        ha="left",
        fontsize=13,
    )
    figure.draw_without_rendering()  # settles the axes' places, which the labels need
    for axes, of_axes in ends.items():
        label_lines(axes, of_axes, COLOURS)
    save(figure, path)


def _along(axes: Axes, results: Mapping[str, Sequence[RunRecord]]) -> dict[str, tuple[float, float]]:
    ends = {}
    reached: list[list[str]] = [list(record.figures["measured"]) for records in results.values() for record in records]
    steps = max(reached, key=len)  # one that diverged has fewer
    places = {step: max(int(step), 4) for step in steps}  # 0 has no logarithm: it stands apart, at the left
    for arm, records in results.items():
        ends[arm] = _line(axes, arm, list(places.values()), [_over_seeds(records, SEEN, step) for step in steps])
    _logarithmic(axes, "optimiser steps")
    axes.set_xticks(list(places.values()), [f"{int(step):,}" for step in places])
    axes.set_xlim(4, max(places.values()))
    return ends


def _by_pairs(
    axes: Axes, results: Mapping[str, Sequence[RunRecord]], by_hand: RunRecord
) -> dict[str, tuple[float, float]]:
    ends = {}
    for arm, records in results.items():
        ends[arm] = _line(axes, arm, CONTEXTS, [_over_seeds(records, str(pairs), None) for pairs in CONTEXTS])
    apart = [by_hand.figures["known"]["distance"][str(pairs)] for pairs in CONTEXTS]
    axes.plot(CONTEXTS, apart, color="black", linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
    ends["best Hebbian read"] = (CONTEXTS[-1], apart[-1])
    _logarithmic(axes, "pairs in context")
    axes.set_xticks(CONTEXTS, [str(pairs) for pairs in CONTEXTS])
    axes.set_xlim(CONTEXTS[0], CONTEXTS[-1])
    axes.axvspan(PAIRS, CONTEXTS[-1], color="#F4F4F4", zorder=0, linewidth=0)
    note: dict[str, Any] = {"xytext": (5, 0), "textcoords": "offset points", "va": "center", "color": "#595959"}
    axes.annotate("more than\nin training", (PAIRS, 4e-3), fontsize=9, **note)
    return ends


def _line(
    axes: Axes, arm: str, places: Sequence[int], values: Sequence[tuple[float, float, float]]
) -> tuple[float, float]:
    """Through the means over seeds, a band over their range; returns its right end. Infinity stands at `HIGHEST`."""
    drawn = [[HIGHEST if math.isinf(value) else value for value in row] for row in values]
    means, lowest, highest = (list(column) for column in zip(*drawn, strict=True))
    first = arm.startswith("SKA")
    axes.fill_between(places, lowest, highest, color=COLOURS[arm], alpha=0.13, linewidth=0)
    axes.plot(
        places, means, color=COLOURS[arm], marker="o" if first else "s", markersize=4, linewidth=2.2 if first else 1.5,
        zorder=3 if first else 2,
    )  # fmt: skip
    return places[-1], min(means[-1], HIGHEST)


def _over_seeds(records: Sequence[RunRecord], pairs: str, step: str | None) -> tuple[float, float, float]:
    """(geometric mean, lowest, highest), as the axis is logarithmic; a seed that diverged makes mean and highest so."""
    values = [figure_of(record, "ridge", pairs, step) for record in records]
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < len(values):
        return math.inf, min(finite, default=math.inf), math.inf
    return geometric_mean(finite), min(finite), max(finite)


def _logarithmic(axes: Axes, label: str) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(LogLocator(base=10))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
