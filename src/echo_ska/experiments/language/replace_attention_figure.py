"""The picture of `replace_attention`: text and copying along the stages of a conversion."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from echo_ska.experiments.language.replace_attention_results import (
    ARMS,
    CONTROL,
    ORIGINAL,
    PERIOD,
    STATES,
    Results,
    figure_of,
)
from echo_ska.experiments.trials.figures import save

COLOURS = dict(zip(ARMS, ("#0072B2", "#56B4E9", "#D55E00", "#E69F00"), strict=True))
MARKERS = dict(zip(ARMS, "osDv", strict=True))
LEVELS = {ORIGINAL: (0, (4, 3)), CONTROL: (0, (1, 1))}


def draw(results: Results, path: Path) -> None:
    """Bits per byte and copied bytes: a line an arm over the three states, levels for both originals."""
    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    text, copied = figure.subplots(1, 2)
    _lines(text, results, None)
    _lines(copied, results, PERIOD)
    text.set_title("Held-out text, bits per byte", loc="left", fontsize=11)
    copied.set_title(f"{PERIOD} random bytes copied right, %", loc="left", fontsize=11)
    copied.set_ylim(-2, 102)
    figure.legend(*text.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    save(figure, path)


def _lines(axes: Axes, results: Results, period: int | None) -> None:
    places = range(len(STATES))
    for arm, style in LEVELS.items():
        if arm in results:
            level = fmean(figure_of(record, "finetuned", period) for record in results[arm])
            axes.axhline(level, color="black", linewidth=1, linestyle=style, label=arm)
    for arm in ARMS:
        if arm not in results:
            continue
        values = [[figure_of(record, state, period) for record in results[arm]] for state in STATES]
        axes.fill_between(places, [min(v) for v in values], [max(v) for v in values], color=COLOURS[arm], alpha=0.15)
        axes.plot(places, [fmean(v) for v in values], color=COLOURS[arm], marker=MARKERS[arm], linewidth=2, label=arm)
    axes.set_xticks(places, list(STATES.values()))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)
