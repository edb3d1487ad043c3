"""What recall-map prints and draws, from its records alone."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from echo_ska.experiments.algebra.fixed_memories import lagged_rank, packed_numbers
from echo_ska.experiments.trials.figures import save
from echo_ska.experiments.trials.studies import BLUE, VERMILION
from echo_ska.training import RunRecord

FIGURES = (
    "ska",
    "lagged",
    "linear",
    "delta",
    "centred",
    "ska_ridge",
    "lagged_ridge",
    "delta_step",
    "ska_error",
    "lagged_error",
    "divided_error",
    "linear_error",
    "delta_error",
)
"""What a cell of a record holds, in this order: accuracies, what was chosen for them, squared errors."""

PEERS = {"linear": "L", "delta": "D", "centred": "C"}
TIE = 0.5
"""Points within which nobody wins; the standard error of a difference is at most 0.5 points."""


def mean_cells(records: Sequence[RunRecord], kind: str) -> dict[tuple[float, float], dict[str, float]]:
    """By (width, load), the means over the seeds of one kind of keys."""
    found = [record.figures["cells"] for record in records if record.configuration["kind"] == kind]
    cells = {}
    for key in found[0]:
        width, load = (float(part) for part in key.split(", "))
        means = [statistics.fmean(values) for values in zip(*(cell[key] for cell in found), strict=True)]
        cells[width, load] = dict(zip(FIGURES, means, strict=True))
    return cells


def lead(cell: dict[str, float], name: str) -> tuple[float, str]:
    """Points by which `name` is ahead of the best peer, and that peer's letter."""
    peer = max(PEERS, key=lambda other: cell[other])
    return 100 * (cell[name] - cell[peer]), PEERS[peer]


def map_rows(records: Sequence[RunRecord], name: str = "ska") -> list[list[str]]:
    """A header, and for every kind of keys and width the lead by load, in points, with the best peer's letter."""
    configuration = records[0].configuration
    rows = [["keys", "P : r", *(f"N = {load:g} r" for load in configuration["loads"])]]
    for kind in _kinds(records):
        cells = mean_cells(records, kind)
        for width in configuration["widths"]:
            leads = [lead(cells[width, load], name) for load in configuration["loads"]]
            rows.append([kind, f"{width:g}", *(_points(*found) for found in leads)])
    return rows


def accuracy_rows(records: Sequence[RunRecord], width: float) -> list[list[str]]:
    """A header, and for every kind of keys and memory its accuracy by load, in %, at one width."""
    loads = records[0].configuration["loads"]
    names = {
        "ska": "SKA, power 0",
        "lagged": "SKA with lag moment",
        "linear": "linear attention",
        "centred": "linear attention, keys centred",
        "delta": "DeltaNet",
    }
    rows = [["keys", "memory", *(f"N = {load:g} r" for load in loads)]]
    for kind in _kinds(records):
        cells = mean_cells(records, kind)
        for name, title in names.items():
            rows.append([kind, title, *(f"{100 * cells[width, load][name]:.1f}" for load in loads)])
    return rows


def chosen_rows(records: Sequence[RunRecord], width: float) -> list[list[str]]:
    """A header, and for every kind of keys the ridge, the step and the errors behind the accuracies at one width."""
    loads = records[0].configuration["loads"]
    names = {
        "ska_ridge": "SKA's ridge",
        "delta_step": "DeltaNet's step",
        "ska_error": "squared error: SKA",
        "divided_error": "SKA, divided",
        "linear_error": "linear attention",
        "delta_error": "DeltaNet",
    }
    rows = [["keys", "", *(f"N = {load:g} r" for load in loads)]]
    for kind in _kinds(records):
        found = [record.figures["cells"] for record in records if record.configuration["kind"] == kind]
        for name, title in names.items():
            place = FIGURES.index(name)
            medians = [statistics.median_low(cells[f"{width:g}, {load:g}"][place] for cells in found) for load in loads]
            rows.append([kind, title, *(f"{value:.2g}" for value in medians)])
    return rows


def rule_rows(records: Sequence[RunRecord]) -> list[list[str]]:
    """A header, and for every width the load up to which SKA leads linear attention: the rule's, then each kind's."""
    configuration = records[0].configuration
    rank, kinds = configuration["rank"], _kinds(records)
    rows = [["memory", "P : r", "rule", *kinds]]
    for name, title in (("ska", "power 0"), ("lagged", "with lag moment")):
        for width in configuration["widths"]:
            head_dim = round(width * rank)
            own = lagged_rank(packed_numbers(rank, head_dim), head_dim) if name == "lagged" else rank
            rule = (own + (head_dim / 2 if name == "lagged" else 2 * head_dim)) / rank
            cells = {kind: mean_cells(records, kind) for kind in kinds}
            found = [crossing(cells[kind], width, name) for kind in kinds]
            rows.append([title, f"{width:g}", f"{rule:.1f}", *found])
    return rows


def crossing(cells: dict[tuple[float, float], dict[str, float]], width: float, name: str) -> str:
    """The load at which the lead of `name` over linear attention ends, between two loads of the map."""
    loads = sorted(load for other, load in cells if other == width)
    leads = [100 * (cells[width, load][name] - cells[width, load]["linear"]) for load in loads]
    ahead = [place for place, points in enumerate(leads) if points > TIE]
    if not ahead:
        return "nowhere ahead"
    last = ahead[-1]
    behind = [place for place, points in enumerate(leads) if place > last and points < -TIE]
    if not behind:
        return f"> {loads[last]:g}"
    share = leads[last] / (leads[last] - leads[behind[0]])
    return f"{loads[last] + share * (loads[behind[0]] - loads[last]):.1f}"


def draw(records: Sequence[RunRecord], path: Path) -> None:
    """Two rows of maps, a column a kind of keys: SKA at power 0, and with the lag moment counted."""
    configuration = records[0].configuration
    rank, kinds, widths, loads = configuration["rank"], _kinds(records), configuration["widths"], configuration["loads"]
    colours = LinearSegmentedColormap.from_list("who wins", [VERMILION, "#F2B48A", "white", "#9CC8E6", BLUE])
    height = 1.6 + 2 * (0.9 + 0.34 * len(loads))
    figure = Figure(figsize=(2.0 + 2.75 * len(kinds), height), layout="constrained")
    panels = figure.subplots(2, len(kinds), squeeze=False, sharey=True)
    image = None
    for row, (name, title) in enumerate((("ska", "SKA, power 0"), ("lagged", "SKA with lag moment"))):
        for column, kind in enumerate(kinds):
            axes: Axes = panels[row][column]
            cells = mean_cells(records, kind)
            leads = [[lead(cells[width, load], name) for width in widths] for load in loads]
            image = axes.imshow(
                [[points for points, _ in line] for line in leads],
                cmap=colours,
                vmin=-60,
                vmax=60,
                aspect="auto",
                origin="lower",
            )
            for y, line in enumerate(leads):
                for x, (points, peer) in enumerate(line):
                    strong = abs(points) > 40
                    text = "=" if abs(points) <= TIE else _points(points, peer)
                    look: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 7.5, "zorder": 3}
                    # The cell's own colour behind the text, where the rule's line would run through it.
                    look["bbox"] = {"facecolor": image.to_rgba(np.array([points]))[0], "edgecolor": "none", "pad": 0.8}
                    axes.text(x, y, text, color="white" if strong else "black", **look)
            for x, width in enumerate(widths if kind == "random" else []):  # what the rule is derived for
                head_dim = round(width * rank)
                own = lagged_rank(packed_numbers(rank, head_dim), head_dim) if name == "lagged" else rank
                rule = (own + (head_dim / 2 if name == "lagged" else 2 * head_dim)) / rank
                axes.plot([x - 0.5, x + 0.5], [_place(rule, loads)] * 2, color="black", linewidth=1.8)
            axes.set_xticks(range(len(widths)), [f"{width:g}" for width in widths])
            axes.set_yticks(range(len(loads)), [f"{load:g}" for load in loads])
            axes.set_xlim(-0.5, len(widths) - 0.5)
            axes.set_ylim(-0.5, len(loads) - 0.5)
            axes.tick_params(length=0)
            for spine in axes.spines.values():
                spine.set_visible(False)
            if row == 0:
                axes.set_title(kind, fontsize=11, pad=8)
            else:
                axes.set_xlabel("width of values over rank, P : r")
            if column == 0:
                axes.set_ylabel(f"{title}\n\npairs over rank, N : r")
    assert image is not None
    bar = figure.colorbar(image, ax=panels, shrink=0.5, aspect=30, pad=0.01)
    bar.set_label("SKA ahead of its best peer, points of accuracy", fontsize=10)
    bar.outline.set_visible(False)
    figure.suptitle(
        "Who recalls more at equal bytes of state. Blue: SKA. Orange: the best of its peers, which the letter names: "
        "L, linear attention, C, with keys centred, D, DeltaNet.\n"
        "Black: where SKA's lead over linear attention should end, N < r + 2P above and N < r + P/2 below",
        x=0.01,
        ha="left",
        fontsize=11,
    )
    save(figure, path)


def _points(points: float, peer: str) -> str:
    """+12.3 D"""
    return f"{points:+.1f} {peer}".replace("-", "−")


def _place(load: float, loads: Sequence[float]) -> float:
    """Where a load stands among rows that are one apart; above the last one at its upper edge."""
    for place, (lower, upper) in enumerate(pairwise(loads)):
        if load <= upper:
            return place + max(0.0, (load - lower) / (upper - lower))
    return len(loads) - 0.5


def _kinds(records: Sequence[RunRecord]) -> list[str]:
    return list(dict.fromkeys(record.configuration["kind"] for record in records))
