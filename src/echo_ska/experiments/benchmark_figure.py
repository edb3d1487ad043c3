"""The benchmark's picture: training time against length, decoding time against context."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from echo_ska.benchmarks.summary import seconds_text, speed_text
from echo_ska.experiments.trials.figures import label_lines, length_axis, save, short_number
from echo_ska.training import RunRecord

COLOURS = {"ska": "#0072B2", "softmax": "#D55E00", "linear": "#595959", "mamba2": "#009E73"}
"""By what a row's name begins with: Okabe and Ito's blue, vermilion and green, and a grey; others are purple."""

OTHERS = "#AA4499"
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (5, 1.5, 1.5, 1.5)), (0, (8, 3)), (0, (3, 3)))


def draw(record: RunRecord, path: Path) -> bool:
    """Draw a record to a PNG at `path`; False, and nothing drawn, if it has neither of the two figures."""
    figures = record.figures
    training = {
        figures["routes"][name]["label"]: (name, _line(timed, "forward_backward"))
        for name, timed in figures.get("training", {}).items()
        if timed
    }
    decoding = {
        row["label"]: (name, _line(row, "seconds")) for name, row in figures.get("decoding", {}).items() if len(row) > 1
    }
    if not training and not decoding:
        return False
    wanted = [
        ("Forward and backward of one layer's op", "tokens in the sequence", training),
        ("Decoding one token", "tokens of context in the state", decoding),
    ]
    wanted = [panel for panel in wanted if panel[2]]
    figure = Figure(figsize=(6.5 * len(wanted), 4.6), layout="constrained")
    panels = list(zip(figure.subplots(1, len(wanted), squeeze=False)[0], wanted, strict=True))
    for axes, (title, label, lines) in panels:
        for name, line in lines.values():
            look = _look(name, [other for other, _ in lines.values()])
            axes.plot(list(line), list(line.values()), linewidth=1.8, markersize=4.5, clip_on=False, **look)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: seconds_text(value, round_number=True)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.margins(y=0.08)
        lengths = sorted({length for _, line in lines.values() for length in line})
        length_axis(axes, lengths, label)
        axes.set_xlim(lengths[0] / 1.1, lengths[-1])
        axes.set_title(title + _ratios(dict(lines.values()))[1], loc="left", fontsize=11)
    figure.draw_without_rendering()  # settles the axes' places, which the labels need
    for axes, (_, _, lines) in panels:
        ratios, _ = _ratios(dict(lines.values()))
        last = max(length for _, line in lines.values() for length in line)
        ends, colours = {}, {}
        for label, (name, line) in lines.items():
            text = f"{label}  {ratios[name]}" if name in ratios else label
            if last in line:
                ends[text], colours[text] = (last, line[last]), _colour(name)
                continue
            # A line that ends early was left out at the longer lengths, and so lies above the others.
            place: dict[str, Any] = {"xytext": (-8, 2), "textcoords": "offset points", "ha": "right", "fontsize": 10}
            axes.annotate(text, (max(line), line[max(line)]), color=_colour(name), **place)
        label_lines(axes, ends, colours)
    save(figure, path)
    return True


def _line(timed: Mapping[str, Any], kind: str) -> dict[int, float]:
    return {int(key): statistics.median(row[kind]) for key, row in timed.items() if key.isdigit()}


def _ratios(lines: Mapping[str, Mapping[int, float]]) -> tuple[dict[str, str], str]:
    """What to write beside each row, how many times as fast as the faster softmax row, and at which length that is."""
    softmax = [line for name, line in lines.items() if name.startswith("softmax")]
    if not softmax:
        return {}, ""
    longest = max(length for line in softmax for length in line)
    least = min(line[longest] for line in softmax if longest in line)
    ratios = {
        name: speed_text(least / line[longest])
        for name, line in lines.items()
        if longest in line and not name.startswith("softmax")
    }
    return ratios, f"; x: as fast as softmax at {short_number(longest)}"


def _colour(name: str) -> str:
    return next((colour for family, colour in COLOURS.items() if name.startswith(family)), OTHERS)


def _look(name: str, names: list[str]) -> dict[str, Any]:
    """Lines of one colour differ in dashes and markers."""
    same = [other for other in names if _colour(other) == _colour(name)].index(name)
    return {
        "color": _colour(name),
        "marker": MARKERS[same % len(MARKERS)],
        "linestyle": DASHES[same % len(DASHES)],
        "zorder": 3 if name == "ska" else 2,
    }
