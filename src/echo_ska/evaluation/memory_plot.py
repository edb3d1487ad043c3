"""The picture of `memory`: bytes of state against tokens read, one line a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from echo_ska.evaluation.memory import MemoryComparison, ModelMemory

ECHO, CONTROL, INK = "#1f6feb", "#d1580f", "#444444"


def format_bytes(size: float) -> str:
    """Three figures and a decimal unit: 79.4 kB, 2.15 GB."""
    if size < 1000:
        return f"{size:.0f} B"
    units = ["kB", "MB", "GB", "TB"]
    size /= 1000
    while size >= 999.5 and len(units) > 1:
        size /= 1000
        units.pop(0)
    digits = 2 if size < 9.995 else 1 if size < 99.95 else 0
    return f"{size:.{digits}f} {units[0]}"


def _round_bytes(power: int) -> str:
    return format_bytes(10.0**power).replace(".00", "").replace(".0", "")


def format_tokens(tokens: int) -> str:
    """1k for 1,024 and 1M for 1,048,576; other numbers in full."""
    for unit, size in (("M", 1 << 20), ("k", 1 << 10)):
        if tokens >= size and tokens % size == 0:
            return f"{tokens // size:,}{unit}"
    return f"{tokens:,}"


def draw_memory(comparisons: Sequence[MemoryComparison], path: str | Path) -> None:
    """Draw the models and their attention twins, log-log, to a PNG at `path`.

    Raises:
        OSError: it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Not through pyplot: it would choose a backend for the whole process.
    figure = Figure(figsize=(8.8, 5.0), dpi=160)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.09, 0.135, 0.70, 0.78))
    lines = {comparison.control.name: (comparison.control, CONTROL) for comparison in comparisons}
    lines |= {comparison.model.name: (comparison.model, ECHO) for comparison in comparisons}
    shades = _shades(comparisons)
    for model, colour in lines.values():
        tokens = [row.tokens for row in model.rows]
        axes.plot(tokens, [row.total for row in model.rows], color=colour, alpha=shades[model.name], linewidth=2)
        measured = [row for row in model.rows if row.measured]
        axes.plot(
            [row.tokens for row in measured],
            [row.total for row in measured],
            "o",
            color=colour,
            alpha=shades[model.name],
            markersize=5,
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = [row.tokens for row in comparisons[0].model.rows][::2]
    axes.set_xticks(ticks, [format_tokens(tick) for tick in ticks])
    axes.set_xlim(right=max(row.tokens for model, _ in lines.values() for row in model.rows))
    axes.minorticks_off()
    low, high = axes.get_ylim()
    powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
    axes.set_yticks([10.0**power for power in powers], [_round_bytes(power) for power in powers])
    axes.set_xlabel("tokens read", color=INK)
    axes.set_title("Bytes of state, one sequence", loc="left", color=INK, fontsize=12)
    axes.tick_params(colors=INK, length=0)
    axes.grid(True, color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)

    # Direct labels at the lines' ends, moved apart where ends are close.
    ends = sorted((model for model, _ in lines.values()), key=_last_total)
    heights = _apart([math.log10(model.rows[-1].total) for model in ends], 0.09 * math.log10(high / low))
    for model, height in zip(ends, heights, strict=True):
        axes.annotate(
            f"{model.name}\n{format_bytes(model.rows[-1].total)}",
            (model.rows[-1].tokens, 10**height),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=lines[model.name][1],
            fontsize=9,
            annotation_clip=False,
        )
    figure.text(0.09, 0.015, "dots: summed from a live state; lines: the layers' formula", color="#888888", fontsize=8)
    figure.savefig(path, format="png")


def _apart(heights: list[float], least: float) -> list[float]:
    """Ascending heights moved as little as it takes to be `least` apart."""
    moved = list(heights)
    for _ in range(100):  # far more rounds than a handful of labels needs to settle
        for below in range(len(moved) - 1):
            missing = least - (moved[below + 1] - moved[below])
            if missing > 0:
                moved[below] -= missing / 2
                moved[below + 1] += missing / 2
    return moved


def _shades(comparisons: Sequence[MemoryComparison]) -> dict[str, float]:
    """Opacity by model: of several models of one colour the smaller ones are paler."""
    shades: dict[str, float] = {}
    for group in ([c.model for c in comparisons], [c.control for c in comparisons]):
        ordered = sorted({model.name: model for model in group}.values(), key=_last_total)
        for place, model in enumerate(ordered, start=1):
            shades[model.name] = 0.4 + 0.6 * place / len(ordered)
    return shades


def _last_total(model: ModelMemory) -> int:
    return model.rows[-1].total
