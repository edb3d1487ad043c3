"""What one-off-distractors prints and draws, from its records alone."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from echo_ska.experiments.trials.figures import label_lines, save
from echo_ska.experiments.trials.studies import BLUE, GREEN, ORANGE, VERMILION
from echo_ska.training import RunRecord

WHITENED, AT_MATCH, AHEAD, READ = range(4)
"""Places in the lists of a record (`one_off_distractors.measure`)."""

SHOWN_RIDGE = 0.1


def mean_read(records: Sequence[RunRecord], series: str, kind: str, place: int) -> dict[str, float]:
    """By filter, the mean over seeds of one of the four figures of a kind of key in a series."""
    filters = records[0].configuration["filters"]
    found = [record.figures["reads"][series] for record in records]
    return {name: statistics.fmean(read[name][kind][place] for read in found) for name in filters}


def predictions(records: Sequence[RunRecord], series: str) -> tuple[list[float], list[float]]:
    """What the two readings say of a one-off key, for K = 0, 1, 2, ...

    Returns:
        persistence: what is left of its own value, leverage * |lambda|^K with the mean modulus of those eigenvalues
        that are not the persistent keys'; look-ahead: the strength of the value K steps after it, leverage times the
        persistent keys' after K - 1 steps, and 0 for K = 0.
    """
    found = [record.figures["reads"][series] for record in records]
    leverage = statistics.fmean(read["leverage"] for read in found)
    modulus = statistics.fmean(read["moduli"][1] for read in found)
    ahead = list(mean_read(records, series, "persistent", AHEAD).values())
    powers = range(_powers(records))
    return [leverage * modulus**power for power in powers], [
        0.0,
        *(leverage * ahead[power - 1] for power in powers[1:]),
    ]


def table_rows(records: Sequence[RunRecord]) -> list[list[str]]:
    """A header, then six rows for every place and number of one-off keys: three reads, a ratio, two predictions."""
    configuration = records[0].configuration
    filters = configuration["filters"]
    rows = [["one-off keys", "what", *filters]]
    for place in configuration["places"]:
        for one_offs in configuration["one_offs"]:
            series = f"{place}, {one_offs}, {SHOWN_RIDGE:g}"
            own = mean_read(records, series, "one_off", AT_MATCH)
            ahead = mean_read(records, series, "one_off", AHEAD)
            persistent = mean_read(records, series, "persistent", AHEAD)
            size = mean_read(records, series, "one_off", WHITENED)
            other = mean_read(records, series, "persistent", WHITENED)
            persistence, look_ahead = predictions(records, series)
            blank = [""] * (len(filters) - len(persistence))
            title = f"{one_offs} of {configuration['length']:,}, {place}"
            rows += [
                [title, "one-off key: its own value", *(_three(value) for value in own.values())],
                ["", "persistence predicts", *(f"{value:.3f}" for value in persistence), *blank],
                ["", "one-off key: value K steps later", *(_three(value) for value in ahead.values())],
                ["", "look-ahead predicts", *(f"{value:.3f}" for value in look_ahead), *blank],
                ["", "persistent key: value K steps later", *(_three(value) for value in persistent.values())],
                ["", "whitened norm, one-off : persistent", *(f"{size[name] / other[name]:.2f}" for name in filters)],
            ]
    return rows


def mode_rows(records: Sequence[RunRecord]) -> list[list[str]]:
    """A header, and for every modulus what is left of a whitened query beside modulus^K."""
    moduli, filters = records[0].configuration["moduli"], records[0].configuration["filters"]
    rows = [["modulus", *filters]]
    for place, modulus in enumerate(moduli):
        cells = []
        for number, name in enumerate(filters):
            kept = statistics.fmean(record.figures["modes"][name][place] for record in records)
            cells.append(f"{kept:.3f} ({modulus**number:.3f})" if number < _powers(records) else f"{kept:.3f}")
        rows.append([f"{modulus:g}", *cells])
    return rows


def draw(records: Sequence[RunRecord], path: Path) -> None:
    """Size of a filtered one-off key, what its read says, and the series where |lambda|^K does hold."""
    configuration = records[0].configuration
    powers = list(range(_powers(records)))
    names = configuration["filters"][: len(powers)]
    figure = Figure(figsize=(15.5, 4.9), layout="constrained")
    size_axes, read_axes, mode_axes = figure.subplots(1, 3)
    colours = dict(zip(configuration["one_offs"], (BLUE, GREEN, ORANGE, VERMILION), strict=True))
    labels: list[tuple[Axes, dict[str, tuple[float, float]], dict[str, str]]] = []
    sizes: dict[str, tuple[float, float]] = {}
    reads: dict[str, tuple[float, float]] = {}
    named: dict[str, str] = {}
    for one_offs, colour in colours.items():
        series = f"{configuration['places'][0]}, {one_offs}, {SHOWN_RIDGE:g}"
        one_off, other = (mean_read(records, series, kind, WHITENED) for kind in ("one_off", "persistent"))
        moduli = [
            statistics.fmean(record.figures["reads"][series]["moduli"][part] for record in records) for part in (0, 1)
        ]
        ratio = [one_off[name] / other[name] for name in names]
        said = [ratio[0] * (moduli[1] / moduli[0]) ** power for power in powers]
        size_axes.plot(powers, said, color=colour, linewidth=1.2, linestyle=(0, (5, 3)))
        _line(size_axes, powers, ratio, colour)
        ahead = mean_read(records, series, "one_off", AHEAD)
        own = mean_read(records, series, "one_off", AT_MATCH)
        persistent = mean_read(records, series, "persistent", AHEAD)
        read_axes.plot(powers, [persistent[name] for name in names], color=colour, linewidth=1.2, linestyle=(0, (5, 3)))
        _line(read_axes, powers[1:], [ahead[name] for name in names[1:]], colour)
        read_axes.plot(
            powers,
            [own[name] for name in names],
            color=colour,
            linewidth=1,
            linestyle=(0, (1, 2)),
            marker="x",
            markersize=6,
            clip_on=False,
        )
        name = f"{one_offs} one-off"
        sizes[name], reads[name], named[name] = (powers[-1], ratio[-1]), (powers[-1], ahead[names[-1]]), colour
    size_axes.set_yscale("log")
    size_axes.set_ylim(1e-3, 40)
    size_axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    size_axes.yaxis.set_minor_locator(NullLocator())
    read_axes.set_ylim(0, 1.02)
    labels += [(size_axes, sizes, named), (read_axes, reads, named)]
    modes: dict[str, tuple[float, float]] = {}
    shades: dict[str, str] = {}
    for place, (modulus, colour) in enumerate(
        zip(configuration["moduli"], (BLUE, GREEN, ORANGE, VERMILION), strict=True)
    ):
        kept = [statistics.fmean(record.figures["modes"][name][place] for record in records) for name in names]
        mode_axes.plot(powers, [modulus**power for power in powers], color=colour, linewidth=1.2, linestyle=(0, (5, 3)))
        _line(mode_axes, powers, kept, colour)
        modes[f"|λ| = {modulus:g}"], shades[f"|λ| = {modulus:g}"] = (powers[-1], kept[-1]), colour
    mode_axes.set_ylim(0, 1.02)
    labels.append((mode_axes, modes, shades))
    titles: list[tuple[Axes, str]] = [
        (size_axes, "Whitened norm of a one-off key, over a persistent one's\ndashed: as persistence predicts, |λ|^K"),
        (
            read_axes,
            "What a one-off key reads: dots, the value K steps later;\ncrosses, its own. Dashed: a persistent key",
        ),
        (mode_axes, "Keys that decay by themselves: |A^K z| : |z|\ndashed: |λ|^K"),
    ]
    for axes, title in titles:
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_xticks(powers, [f"K = {power}" for power in powers])
        axes.set_xlim(-0.1, powers[-1])
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)
        axes.set_axisbelow(True)
    figure.draw_without_rendering()  # settles the axes' places, which the labels need
    for axes, ends, shown in labels:
        label_lines(axes, ends, shown)
    save(figure, path)


def _three(value: float) -> str:
    """Three decimals, and no sign where they are 0."""
    return f"{round(value, 3) + 0.0:.3f}"


def _line(axes: Axes, powers: Sequence[int], values: Sequence[float], colour: str) -> None:
    look: dict[str, Any] = {"linewidth": 2, "marker": "o", "markersize": 5, "clip_on": False}
    axes.plot(powers, values, color=colour, **look)


def _powers(records: Sequence[RunRecord]) -> int:
    """How many filters are pure powers, 0 upwards; they come first."""
    return sum("blended" not in name for name in records[0].configuration["filters"])
