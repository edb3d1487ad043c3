"""How the experiments draw: colours that colour-blind readers tell apart, labels at the lines, powers of two."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

COLOURS = {
    "ssm": "#595959",
    "ssm, with the aids": "#CC79A7",
    "ssm+attention": "#D55E00",
    "ssm+attention, no positions": "#009E73",
    "ssm+ska": "#0072B2",
}
"""Okabe and Ito's purple, vermilion, green and blue, and a grey."""

MARKERS = {
    "ssm": "s",
    "ssm, with the aids": "D",
    "ssm+attention": "^",
    "ssm+attention, no positions": "v",
    "ssm+ska": "o",
}


def length_axis(axes: Axes, lengths: Sequence[int], label: str = "tokens in the sequence") -> None:
    """A logarithmic axis of lengths with a tick at each, and room at its right for the lines' labels."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [short_number(length) for length in lengths])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)


def label_lines(axes: Axes, ends: Mapping[str, tuple[float, float]], colours: Mapping[str, str]) -> None:
    """Write each line's label behind its right end (x, y), moved up or down until no two touch, beside the axes.

    Call it when the axes have their limits.
    """
    height = 13.0  # points between two labels
    placed = sorted(((axes.transData.transform(end)[1], name) for name, end in ends.items()))
    dots_a_point = axes.figure.dpi / 72
    heights = [position / dots_a_point for position, _ in placed]
    for _ in range(100):  # push touching neighbours apart by equal amounts, until none is
        for lower in range(len(heights) - 1):
            overlap = height - (heights[lower + 1] - heights[lower])
            if overlap > 1e-3:
                heights[lower] -= overlap / 2
                heights[lower + 1] += overlap / 2
    box = axes.get_window_extent()
    heights = _within(heights, box.y0 / dots_a_point, box.y1 / dots_a_point, height)
    for (position, name), wanted in zip(placed, heights, strict=True):
        offset = (8, wanted - position / dots_a_point)
        axes.annotate(
            name,
            ends[name],
            xytext=offset,
            textcoords="offset points",
            color=colours[name],
            va="center",
            fontsize=10,
            annotation_clip=False,
            # Where another line goes on behind it; a halo would turn the text of an SVG into outlines.
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8},
        )


def _within(heights: list[float], lowest: float, highest: float, apart: float) -> list[float]:
    """Ascending heights moved between two bounds, or above the higher one where they find no room."""
    found = list(heights)
    for place in reversed(range(len(found))):
        found[place] = min(found[place], highest - apart * (len(found) - 1 - place))
    for place in range(len(found)):
        found[place] = max(found[place], lowest + apart * place)
    return found


def label_points(axes: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Write each point's name beside it, at the first of several places that touches no point and no other name.

    Call it when the axes have their limits.
    """
    dots = axes.figure.dpi / 72
    centres = {name: axes.transData.transform(point) / dots for name, point in points.items()}
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in centres.values()]
    box = axes.get_window_extent()
    lifts = sorted(range(-40, 41), key=lambda lift: (abs(lift), -lift))  # the nearest first, up before down
    for name, (x, y) in centres.items():
        width, height = 5.2 * len(name), 12.5  # of the text in points, at most
        for lift, right in itertools.product(lifts, (9.0, -9.0)):
            up = 6.0 * lift
            left = x + right - (width if right < 0 else 0.0)
            place = (left, y + up - height / 2, left + width, y + up + height / 2)
            inside = place[0] > box.x0 / dots and place[2] < box.x1 / dots + 60
            if inside and not any(_touch(place, other) for other in taken):
                break
        taken.append(place)
        axes.annotate(
            name,
            points[name],
            xytext=(right, up),
            textcoords="offset points",
            ha="left" if right > 0 else "right",
            va="center",
            fontsize=8,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": "#999999", "linewidth": 0.6} if abs(up) > 12 else None,
        )


def _touch(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def percent_grid(axes: Axes, grid: Sequence[Sequence[float]], *, origin: Literal["upper", "lower"] = "upper") -> None:
    """Percentages as a field of blue, darker for more, each with its number, rounded down; not a number is left white.

    Args:
        axes: ticks are the caller's.
        grid: rows of columns, 0 to 100.
        origin: where the first row is.
    """
    axes.imshow(grid, cmap="Blues", vmin=0, vmax=130, aspect="auto", origin=origin)
    for row, values in enumerate(grid):
        for column, value in enumerate(values):
            shown = "–" if math.isnan(value) else f"{int(value + 1e-9)}"
            colour = "white" if value > 65 else "black"
            axes.text(column, row, shown, ha="center", va="center", fontsize=10, color=colour)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def save(figure: Figure, path: Path) -> None:
    """Write a picture in one step, so that nobody finds half of one: a PNG, or an SVG where the name ends so.

    An SVG keeps its text as text, has no ground of its own, and is the same for the same figure.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    options: dict[str, Any] = {"format": "png", "dpi": 160, "bbox_inches": "tight"}
    if path.suffix == ".svg":
        options |= {"format": "svg", "transparent": True, "metadata": {"Date": None}}
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": path.stem}):
        figure.savefig(partial, **options)
    partial.replace(path)


def short_number(number: float) -> str:
    """64, 2k, 64k, 1M: in units of 1,024."""
    for size, suffix in ((1 << 20, "M"), (1 << 10, "k")):
        if number >= size and number % size == 0:
            return f"{number / size:g}{suffix}"
    return f"{number:,g}"


def percent(fraction: float) -> str:
    """One decimal, rounded down, so that 100.0 means all."""
    return f"{math.floor(1000 * fraction + 1e-9) / 10:.1f}"


def mean_with_range(values: Sequence[float], shown: Callable[[float], str]) -> str:
    """2.051 (2.049-2.053), 0.7 (-0.3 to 1.7): the mean, and the range where `shown` tells values apart; "" for none."""
    if not values:
        return ""
    mean, lowest, highest = (shown(value) for value in (fmean(values), min(values), max(values)))
    to = " to " if lowest.startswith("-") else "-"
    return mean if lowest == highest else f"{mean} ({lowest}{to}{highest})"


def short_bytes(number: float) -> str:
    """38.7 kB, 2.12 MB: three digits, in units of 1,000."""
    for size, suffix in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= size:
            return f"{number / size:.3g} {suffix}"
    return f"{number:.0f} B"


def draw_gains(values: Mapping[str, Sequence[float]], start: str, order: Sequence[str], label: str, path: Path) -> None:
    """A bar a change from the start's mean to its own, its seeds as dots.

    Args:
        values: by change, the start among them, a figure a seed.
        start: what the bars begin at.
        order: of the changes, from below.
        label: of the axis.
        path: the PNG.
    """
    figure = Figure(figsize=(8.5, 1 + 0.32 * len(order)), layout="constrained")
    axes = figure.subplots()
    origin = fmean(values[start])
    for place, name in enumerate(order):
        axes.barh(place, fmean(values[name]) - origin, left=origin, height=0.6, color="#0072B2", alpha=0.35)
        axes.plot(values[name], [place] * len(values[name]), "o", color="#0072B2", markersize=5)
    axes.axvline(origin, color="black", linewidth=1)
    axes.set_yticks(range(len(order)), order)
    axes.set_xlabel(f"{label}; dots are seeds, the line is {start}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    save(figure, path)
