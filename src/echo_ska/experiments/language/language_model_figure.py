"""The picture of `language-model`: bits per byte against context for every text, and the seeds beside their means."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from echo_ska.experiments.language import language_model_results as recorded
from echo_ska.experiments.trials.comparison import Results
from echo_ska.experiments.trials.figures import length_axis, save
from echo_ska.experiments.trials.texts import TEST
from echo_ska.training.bits_per_byte import bits

COLOURS = {
    "transformer": "#000000",
    "mamba-2": "#8C8C8C",
    recorded.HYBRID: "#D55E00",
    recorded.NO_POSITIONS: "#882255",
    "mamba-2 + attention, 8 %": "#E69F00",
    "gated deltanet": "#009E73",
    "mamba-3": "#CC79A7",
    recorded.SWIGLU: "#56B4E9",
    recorded.ECHO: "#0072B2",
}
OWN = (recorded.SWIGLU, recorded.ECHO)
ROOM = 0.35
"""Bits per byte above the worst model at the training's length; what gets worse with context leaves the panel."""
FIRST_SHOWN = 4.0
"""Bits per byte: learning curves are drawn from where they are below."""


def draw(results: Results, path: Path) -> None:
    """A panel a text, a line an arm through the means, a band over its seeds; learning; the seeds on unseen authors."""
    parts, contexts = recorded.scored_parts(results), recorded.scored_contexts(results)
    columns = 2
    lines = math.ceil((len(parts) + 1) / columns)
    figure = Figure(figsize=(11, 3.9 * lines + 3.2), layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(3.9 * lines, 3.2)).flatten()
    panels = above.subplots(lines, columns, squeeze=False).flatten().tolist()
    for axes, part in zip(panels, parts, strict=False):
        _curves(axes, results, part, contexts)
    _learning(panels[len(parts)], results)
    for axes in panels[len(parts) + 1 :]:
        axes.set_axis_off()
    _dots(below.subplots(), results, contexts)
    handles, labels = panels[0].get_legend_handles_labels()
    above.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    save(figure, path)


def _curves(axes: Axes, results: Results, part: str, contexts: list[int]) -> None:
    lowest, at_training, length = math.inf, [], recorded.training_length(results)
    for name in recorded.in_order(results):
        by_context = [recorded.values(results[name], part, context) for context in contexts]
        means = [fmean(each) for each in by_context]
        weight = 2.6 if name in OWN else 1.4
        axes.fill_between(
            contexts,
            list(map(min, by_context)),
            list(map(max, by_context)),
            color=COLOURS[name],
            alpha=0.15,
            linewidth=0,
        )
        axes.plot(contexts, means, color=COLOURS[name], linewidth=weight, marker="o", markersize=3.5, label=name)
        lowest = min(lowest, *map(min, by_context))
        at_training.append(means[contexts.index(length)])
    length_axis(axes, contexts, "context, bytes (half to all of it before each byte)")
    axes.set_ylim(lowest - 0.03, max(at_training) + ROOM)
    axes.axvline(length, color="black", linewidth=1, linestyle=(0, (2, 3)))
    axes.annotate(
        "training",
        (length, 0.98),
        xycoords=("data", "axes fraction"),
        xytext=(-4, 0),
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize=9,
    )
    axes.set_title(f"{recorded.label(part)}: bits per byte", loc="left", fontsize=11)


def _dots(axes: Axes, results: Results, contexts: list[int]) -> None:
    """At the training's length and at the longest context; what lies beyond the axis is written at its end."""
    names = recorded.in_order(results)[::-1]
    length = recorded.training_length(results)
    shown = ((length, 0.15, "o"), (contexts[-1], -0.15, "D"))
    near = [fmean(recorded.values(results[name], TEST, length)) for name in names]
    least = min(value for name in names for c, _, _ in shown for value in recorded.values(results[name], TEST, c))
    most = max(near) + ROOM
    for context, offset, marker in shown:
        for place, name in enumerate(names):
            seeds = recorded.values(results[name], TEST, context)
            middle, at = fmean(seeds), place + offset
            if middle > most:
                axes.annotate(f"{middle:.2f} \N{RIGHTWARDS ARROW}", (most, at), ha="right", va="center", fontsize=8)
                continue
            axes.hlines(at, min(seeds), max(seeds), color=COLOURS[name], linewidth=1.5)
            axes.plot(seeds, [at] * len(seeds), "|", color=COLOURS[name], markersize=7)
            axes.plot(middle, at, marker, color=COLOURS[name], markersize=6)
    for context, _, marker in shown:
        axes.plot([], [], marker, color="#595959", label=f"context {context:,}")
    axes.set_xlim(least - 0.03, most)
    axes.set_yticks(range(len(names)), names)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=8, loc="center right")
    axes.set_title(f"{recorded.label(TEST)}: means, a line over the seeds", loc="left", fontsize=11)


def _learning(axes: Axes, results: Results) -> None:
    """Training losses in bits per byte against bytes read, each seed a line, from where they are below 4."""
    for name in recorded.in_order(results):
        for record in results[name]:
            data = record.configuration["data"]
            points = [
                (step * data["batch_size"] * data["length"], bits(loss))
                for step, loss in record.figures["curve"]
                if bits(loss) < FIRST_SHOWN
            ]
            weight = 1.6 if name in OWN else 0.9
            if points:
                axes.plot(*zip(*points, strict=True), color=COLOURS[name], linewidth=weight)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g} MB")
    axes.set_xlabel("bytes read")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_title("training text: bits per byte while it is learnt", loc="left", fontsize=11)
