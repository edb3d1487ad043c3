"""The pictures of what SKA heads write: their gates, blends and learnt numbers, and the tokens under them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PatchCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullLocator
from torch import Tensor

from echo_ska.evaluation.inspection import Inspection, LayerInspection
from echo_ska.evaluation.inspection_plot import BLUE, GREY, HEADS, INK, PALE, SMALL, plain, save
from echo_ska.ops.arguments import RIDGE_FLOOR

WEIGHT = LinearSegmentedColormap.from_list("weight", ["#ffffff", "#cfe3f2", "#7db3d8", "#2b7bba", "#08306b"])
"""From nothing written to everything."""

PURPLE = "#8B4F9F"
BINS = 40
COLUMNS = 88
"""Characters in a line of the picture of tokens."""


@dataclass(frozen=True)
class ShownToken:
    """A token as it is drawn.

    Attributes:
        index: its place in the input.
        text: what to write.
        role: a word above it, or "".
    """

    index: int
    text: str
    role: str = ""


def draw_heads(inspection: Inspection, path: Path) -> None:
    """Draw each head's learnt ridge, gain and scale, and how its write weights and blends are distributed."""
    layers = inspection.layers
    heights = [0.55 + 0.42 * layer.num_heads for layer in layers]
    figure = Figure(figsize=(11, 0.7 + sum(heights)), dpi=160, layout="constrained")
    panels = figure.subplots(
        len(layers), 3, squeeze=False, height_ratios=heights, width_ratios=[1, 1.35, 1.35], sharex="col"
    )
    for (numbers, weights, blends), layer in zip(panels, layers, strict=True):
        _numbers(numbers, layer)
        _ridgeline(weights, layer.write_weight, BLUE, "no gate: every token is stored whole", ends=True)
        absent = "power 0: plain regression alone" if layer.power == 0 else "no blend: the filtered read alone"
        _ridgeline(blends, layer.blend, PURPLE, absent, ends=False)
        for axes in (numbers, weights, blends):
            axes.set_ylim(layer.num_heads - 0.4, -0.95)
            axes.set_yticks(range(layer.num_heads), [""] * layer.num_heads)
            plain(axes)
        numbers.set_yticklabels([f"layer {layer.layer}, head {head}" for head in range(layer.num_heads)])
    for axes, title in zip(
        panels[0],
        ("learnt numbers", "write weight of the tokens", "blend: share of the filtered read"),
        strict=True,
    ):
        axes.set_title(title, fontsize=10, color=INK, loc="left", pad=12)
    panels[0, 1].text(0, 1.02, "left and right: share of exactly 0 and exactly 1", transform=panels[0, 1].transAxes,
                      **SMALL)  # fmt: skip
    panels[0, 2].text(0, 1.02, "right: the mean", transform=panels[0, 2].transAxes, **SMALL)
    marks, names = panels[0, 0].get_legend_handles_labels()
    figure.legend(marks, names, loc="outside lower left", ncols=len(names), frameon=False, fontsize=8, labelcolor=INK)
    save(figure, path)


def draw_tokens(inspection: Inspection, tokens: Sequence[ShownToken], path: Path) -> bool:
    """Draw the tokens, layer by layer, on the colour of their write weight, with a strip for each head below.

    Returns:
        Whether there was anything to draw: without a write gate every token weighs 1.
    """
    layers = [layer for layer in inspection.layers if layer.write_weight is not None]
    if not layers:
        return False
    lines = token_lines(tokens, COLUMNS)
    columns = max(sum(len(token.text) for token in line) for line in lines)
    above = 0.55 if any(token.role for token in tokens) else 0.0
    strip = min(0.24, 1.4 / max(layer.num_heads for layer in layers))
    heights = [0.45 + above + 1.0 + strip * layer.num_heads for layer in layers]
    total = sum(1.6 + height * len(lines) for height in heights)
    width = max(columns, 60)
    figure = Figure(figsize=(0.105 * width + 0.3, 0.155 * total + 0.55), dpi=160)
    axes = figure.add_axes((0.01, 0.0, 0.98, 1 - 0.45 / (0.155 * total + 0.55)))
    axes.set_xlim(-3, width + 0.3)
    axes.set_ylim(total, 0)
    axes.set_axis_off()
    top = 0.0
    for layer, height in zip(layers, heights, strict=True):
        many = "" if layer.num_heads == 1 else f": the mean of its {layer.num_heads} heads, and below it each head"
        axes.text(0, top + 0.9, f"layer {layer.layer}{many}", fontsize=9, color=INK, va="center")
        top += 1.6
        for line in lines:
            _draw_line(axes, layer, line, top, above, strip)
            top += height
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 1), WEIGHT),
        cax=figure.add_axes((0.72, 1 - 0.24 / figure.get_figheight(), 0.25, 0.09 / figure.get_figheight())),
        orientation="horizontal",
        ticks=[0, 0.5, 1],
    )
    bar.outline.set_linewidth(0.4)
    bar.ax.tick_params(length=0, labelsize=7, colors=INK, pad=1)
    figure.text(0.03, 1 - 0.2 / figure.get_figheight(), "What is written: write weight of each token", fontsize=10,
                color=INK, va="center")  # fmt: skip
    save(figure, path)
    return True


def _numbers(axes: Axes, layer: LayerInspection) -> None:
    heads = torch.arange(layer.num_heads)
    axes.axvline(RIDGE_FLOOR, color=GREY, linewidth=1, linestyle=(0, (1, 2)))
    for values, name, mark, colour in (
        (layer.ridge, "ridge (dotted: its floor)", "o", HEADS[5]),
        (layer.gain, "gain", "D", HEADS[0]),
        (layer.scale, "scale", "s", HEADS[2]),
    ):
        if values is not None:
            # Where two meet, both stay visible.
            place = heads + {"o": 0.0, "D": -0.16, "s": 0.16}[mark]
            axes.scatter(values.abs(), place, marker=mark, s=26, color=colour, linewidths=0, label=name, zorder=3)
    axes.set_xscale("log")
    axes.set_xlim(RIDGE_FLOOR / 2, max(10.0, 2 * float(layer.ridge.max())))
    axes.xaxis.set_minor_locator(NullLocator())


def _ridgeline(axes: Axes, values: Tensor | None, colour: str, absent: str, *, ends: bool) -> None:
    """One filled histogram a head over [0, 1]; `ends` leaves out the exact 0 and 1 and writes their shares."""
    axes.set_xlim(-0.16, 1.16)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "¼", "½", "¾", "1"])
    if values is None:
        axes.text(0.5, 0.5, absent, transform=axes.transAxes, ha="center", **SMALL)
        return
    edges = torch.linspace(0, 1, BINS + 1)
    for head, of_head in enumerate(values.T):
        inside = of_head[(of_head > 0) & (of_head < 1)] if ends else of_head
        counts = torch.histogram(inside, edges).hist
        heights = 0.8 * counts / counts.max().clamp_min(1)
        axes.stairs(head - heights, edges, baseline=head, fill=True, color=colour, alpha=0.8, linewidth=0, zorder=2)
        axes.hlines(head, 0, 1, color=PALE, linewidth=0.8, zorder=1)
        if ends:
            axes.text(-0.02, head, f"{100 * (of_head == 0).float().mean():.0f} %", ha="right", va="bottom", **SMALL)
            axes.text(1.02, head, f"{100 * (of_head == 1).float().mean():.0f} %", ha="left", va="bottom", **SMALL)
        else:
            axes.text(1.02, head, f"{of_head.mean():.2f}", ha="left", va="bottom", **SMALL)


def token_lines(tokens: Sequence[ShownToken], columns: int) -> list[list[ShownToken]]:
    """Lines of at most `columns` characters; where tokens were left out between two, a new one begins."""
    lines: list[list[ShownToken]] = [[]]
    width = 0
    for before, token in zip([None, *tokens[:-1]], tokens, strict=True):
        skipped = before is not None and token.index > before.index + 1
        if lines[-1] and (width + len(token.text) > columns or skipped):
            lines.append([])
            width = 0
        lines[-1].append(token)
        width += len(token.text)
    return lines


def _draw_line(
    axes: Axes, layer: LayerInspection, line: Sequence[ShownToken], top: float, above: float, strip: float
) -> None:
    assert layer.write_weight is not None
    boxes: list[Rectangle] = []
    weights: list[float] = []
    left = 0
    for token in line:
        of_heads = layer.write_weight[token.index]
        mean, width = float(of_heads.mean()), len(token.text)
        boxes.append(Rectangle((left, top + above), width, 1.0))
        weights.append(mean)
        for head, weight in enumerate(of_heads.tolist()):
            boxes.append(Rectangle((left, top + above + 1.0 + strip * head), width, strip))
            weights.append(weight)
        look: dict[str, Any] = {"ha": "center", "va": "center", "parse_math": False}
        if token.role:
            axes.text(left + width / 2, top + above / 2, token.role, fontsize=5.5, color=GREY, **look)
        shown = token.text.replace("\n", "¶").replace("\t", "→")
        if shown.strip():
            colour = "white" if mean > 0.55 else GREY if shown == "¶" else INK
            for place, character in enumerate(shown if not token.role else [shown.strip()]):
                middle = left + (width / 2 if token.role else place + 0.5)
                axes.text(middle, top + above + 0.5, character, fontsize=7.5, family="DejaVu Sans Mono", color=colour,
                          **look)  # fmt: skip
        left += width
    patches = PatchCollection(boxes, cmap=WEIGHT, norm=Normalize(0, 1), linewidths=0.15, edgecolors="#00000018")
    patches.set_array(torch.tensor(weights).numpy())
    axes.add_collection(patches)
    height = 1.0 + strip * layer.num_heads
    axes.add_patch(Rectangle((0, top + above), math.ceil(left), height, fill=False, edgecolor="#bbbbbb", linewidth=0.5))
    axes.text(-0.4, top + above + 0.5, f"{line[0].index:,}", fontsize=6, color=GREY, ha="right", va="center")
