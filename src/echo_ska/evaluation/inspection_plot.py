"""The pictures of what SKA heads hold: operator eigenvalues, Gram spectra, and how both change along an input."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator
from PIL import Image

from echo_ska.evaluation.inspection import Inspection, LayerInspection
from echo_ska.evaluation.memory_plot import format_tokens
from echo_ska.ops.arguments import RIDGE_FLOOR
from echo_ska.sealed import whole_file

INK, GREY, PALE = "#333333", "#8a8a8a", "#e6e6e6"
BLUE, VERMILION = "#0072B2", "#D55E00"
HEADS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#7A6B00", "#595959")
"""Okabe and Ito's colours, the yellow darker; from the ninth head on they come again, dashed."""

ALONG = LinearSegmentedColormap.from_list("along", ["#f2dcae", "#e8a04c", "#c2502f", "#5b1a4b"])
MOST_COLUMNS = 6
SMALL: dict[str, Any] = {"fontsize": 8, "color": GREY}


def draw_eigenvalues(inspection: Inspection, path: Path) -> bool:
    """Draw, head by head, the eigenvalues of gain A in the complex plane, pale ones earlier, dark ones at the end.

    Returns:
        Whether there was anything to draw: at power 0 there is no operator.
    """
    layers = [layer for layer in inspection.layers if layer.operator_eigenvalues is not None]
    if not layers:
        return False
    largest = max(float(_filtered(layer).abs().max()) for layer in layers)
    limit = next((limit for limit in (0.25, 0.5, 1.0) if 1.05 * largest <= limit), max(1.0, 1.05 * largest))
    last = int(layers[0].positions[-1])
    norm = LogNorm(1, max(2, last))
    figure, cells = _grid(layers, width=1.95, height=2.2)
    for layer, head, axes in cells:
        _disk(axes, layer, head, limit, norm)
    bar = figure.colorbar(
        ScalarMappable(norm, ALONG), ax=figure.axes, location="bottom", shrink=0.5, aspect=45, pad=0.025
    )
    _position_ticks(bar.ax.xaxis, last)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8, colors=INK)
    bar.set_label("tokens read", fontsize=9, color=INK)
    zoomed = " (the whole unit disk is in the corners)" if limit < 1 else ""
    figure.suptitle(
        "Eigenvalues of each head's Koopman operator times its gain, larger dots after the whole input\n"
        f"dashed: |z| = gain, which bounds them; solid: the unit circle{zoomed}",
        fontsize=10,
        color=INK,
        x=0.01,
        ha="left",
    )
    save(figure, path)
    return True


def draw_spectra(inspection: Inspection, path: Path) -> None:
    """Draw, head by head, all eigenvalues of the Gram matrix against the tokens read, with the ridge and its floor."""
    figure, cells = _grid(inspection.layers, width=1.95, height=1.9)
    largest = max(float(layer.gram_eigenvalues.max()) for layer in inspection.layers)
    low, high = RIDGE_FLOOR / 3, max(3 * largest, 10.0)
    for layer, head, axes in cells:
        spectra, positions = layer.gram_eigenvalues[:, head].clamp_min(low / 10), layer.positions
        axes.plot(positions, spectra, color=BLUE, linewidth=0.6, alpha=0.35)
        for edge in (0, -1):
            axes.plot(positions, spectra[:, edge], color=BLUE, linewidth=1.8)
        axes.axhline(float(layer.ridge[head]), color=VERMILION, linewidth=1.4)
        axes.axhline(RIDGE_FLOOR, color=GREY, linewidth=1, linestyle=(0, (1, 2)))
        axes.set_yscale("log")
        axes.set_ylim(low, high)
        _position_axis(axes, int(positions[-1]))
        plain(axes)
        axes.yaxis.set_major_locator(LogLocator(numticks=5))
        axes.yaxis.set_minor_formatter(NullFormatter())
        rank = float(layer.effective_rank[-1, head])
        axes.set_title(f"layer {layer.layer}, head {head}", fontsize=9, color=INK, loc="left", pad=14)
        axes.text(0, 1.03, f"ridge {layer.ridge[head]:.3g}, rank {rank:.1f} of {layer.rank}", transform=axes.transAxes,
                  **SMALL)  # fmt: skip
    _label_outer(figure, "tokens read")
    figure.suptitle(
        "Eigenvalues of each head's Gram matrix: largest and smallest bold, others thin, zeros below the picture\n"
        f"orange: the head's ridge; dotted: its floor, {RIDGE_FLOOR:g}; rank: the effective one after the whole input",
        fontsize=10,
        color=INK,
        x=0.01,
        ha="left",
    )
    save(figure, path)


def draw_positions(inspection: Inspection, path: Path) -> None:
    """Draw effective rank, condition number and the operator's size against the tokens read, one line a head."""
    layers = inspection.layers
    figure = Figure(figsize=(max(5.2, 0.9 + 3.3 * len(layers)), 7.2), dpi=160, layout="constrained")
    panels = figure.subplots(3, len(layers), squeeze=False, sharex=True)
    worst = max(float(layer.condition_at(RIDGE_FLOOR).max()) for layer in layers)
    moduli = [_filtered(layer).abs().amax(-1) for layer in layers if layer.operator_eigenvalues is not None]
    highest = max([1.05, *(1.05 * float(modulus.max()) for modulus in moduli)])
    for column, layer in enumerate(layers):
        ranks, conditions, sizes = panels[:, column]
        _head_lines(ranks, layer.positions, layer.effective_rank)
        ranks.axhline(layer.rank, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
        ranks.set_ylim(0, 1.12 * layer.rank)
        ranks.text(layer.positions[-1], layer.rank, f"r = {layer.rank} ", ha="right", va="bottom", **SMALL)
        ranks.set_title(f"layer {layer.layer}", fontsize=10, color=INK, loc="left")

        _head_lines(conditions, layer.positions, layer.condition)
        floor = layer.condition_at(RIDGE_FLOOR).amax(-1)
        conditions.plot(layer.positions, floor, color=GREY, linewidth=1.2, linestyle=(0, (1, 1.5)))
        conditions.set_yscale("log")
        limit = 1 / torch.finfo(torch.float32).eps
        conditions.axhline(limit, color=VERMILION, linewidth=1, linestyle=(0, (4, 3)))
        conditions.text(1, limit, "float32 keeps no digit beyond", va="bottom", fontsize=8, color=VERMILION)
        conditions.text(layer.positions[-1], 1.5 * floor[-1], "with the ridge at its floor ", ha="right", **SMALL)
        conditions.set_ylim(0.7, 8 * max(worst, limit))

        if layer.operator_eigenvalues is None:
            sizes.text(0.5, 0.5, "power 0: no operator", transform=sizes.transAxes, ha="center", **SMALL)
        else:
            _head_lines(sizes, layer.positions, _filtered(layer).abs().amax(-1))
        sizes.axhline(1, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
        sizes.set_ylim(0, highest)
        for axes in (ranks, conditions, sizes):
            _position_axis(axes, int(layer.positions[-1]))
            plain(axes)
        sizes.set_xlabel("tokens read", fontsize=9, color=INK)
    for axes, name in zip(
        panels[:, 0],
        ("effective rank", "condition number of G + ridge I", "largest |eigenvalue| of gain A"),
        strict=True,
    ):
        axes.set_ylabel(name, fontsize=9, color=INK)
    most = max(layers, key=lambda layer: layer.num_heads)
    lines = panels[0, layers.index(most)].get_lines()[: most.num_heads]
    names = [f"head {head}" for head in range(most.num_heads)]
    figure.legend(lines, names, loc="outside upper left", ncols=6, frameon=False, fontsize=8, labelcolor=INK)
    save(figure, path)


def _filtered(layer: LayerInspection) -> torch.Tensor:
    """Eigenvalues of gain A, complex [N, H, r]."""
    assert layer.operator_eigenvalues is not None
    assert layer.gain is not None
    return layer.operator_eigenvalues * layer.gain[:, None]


def _disk(axes: Axes, layer: LayerInspection, head: int, limit: float, norm: LogNorm) -> None:
    assert layer.gain is not None
    gain, found = abs(float(layer.gain[head])), _filtered(layer)[:, head]  # [N, r]
    axes.set_aspect("equal")
    axes.set_xlim(-1.06 * limit, 1.06 * limit)
    axes.set_ylim(-1.06 * limit, 1.06 * limit)
    axes.axhline(0, color=PALE, linewidth=0.8, zorder=0)
    axes.axvline(0, color=PALE, linewidth=0.8, zorder=0)
    axes.add_patch(Circle((0, 0), 1, fill=False, edgecolor=INK, linewidth=0.9, zorder=1))
    axes.add_patch(Circle((0, 0), gain, fill=False, edgecolor=BLUE, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1))
    for radius in (limit / 2, limit):
        if limit <= 1:
            axes.add_patch(Circle((0, 0), radius, fill=False, edgecolor=PALE, linewidth=0.8, zorder=0, clip_on=False))
            axes.text(0.66 * radius, -0.77 * radius, f"{radius:g}", fontsize=6.5, color=GREY, va="top", zorder=2)
    every = max(1, math.ceil(found.numel() / 4000))  # dots beyond that only make the file larger
    tokens = layer.positions[:, None].expand(found.shape)
    earlier = (found[:-1].flatten()[::every], tokens[:-1].flatten()[::every])
    axes.scatter(earlier[0].real, earlier[0].imag, c=earlier[1], cmap=ALONG, norm=norm, s=5, linewidths=0)
    axes.scatter(
        found[-1].real, found[-1].imag, c=tokens[-1], cmap=ALONG, norm=norm, s=22, linewidths=0.7, edgecolors="white"
    )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_title(f"layer {layer.layer}, head {head}", fontsize=9, color=INK, loc="left", pad=16)
    axes.text(0, 1.06, f"gain {layer.gain[head]:.3g}, power {layer.power}", transform=axes.transAxes, **SMALL)
    if limit < 1:
        small = axes.inset_axes((0.8, 0.8, 0.26, 0.26))
        small.set_aspect("equal")
        small.set_xlim(-1.1, 1.1)
        small.set_ylim(-1.1, 1.1)
        small.add_patch(Circle((0, 0), 1, facecolor="white", edgecolor=INK, linewidth=0.7))
        small.add_patch(Circle((0, 0), gain, fill=False, edgecolor=BLUE, linewidth=0.6, linestyle=(0, (3, 2))))
        small.scatter(found[-1].real, found[-1].imag, color=ALONG(1.0), s=1.2, linewidths=0)
        small.set_axis_off()


def _grid(
    layers: Sequence[LayerInspection], *, width: float, height: float
) -> tuple[Figure, Iterator[tuple[LayerInspection, int, Axes]]]:
    """A panel for every head; each layer begins a row, and goes on in further ones where it has many heads."""
    columns = min(MOST_COLUMNS, max(layer.num_heads for layer in layers))
    rows = [math.ceil(layer.num_heads / columns) for layer in layers]
    size = (max(6.4, 0.3 + width * columns), 0.9 + height * sum(rows))
    figure = Figure(figsize=size, dpi=160, layout="constrained")
    panels = figure.subplots(sum(rows), columns, squeeze=False)
    cells = []
    for first, (layer, used) in zip([sum(rows[:place]) for place in range(len(rows))], zip(layers, rows, strict=True),
                                    strict=True):  # fmt: skip
        spare = panels[first : first + used].flatten()
        cells += [(layer, head, axes) for head, axes in enumerate(spare[: layer.num_heads])]
        for axes in spare[layer.num_heads :]:
            axes.remove()
    return figure, iter(cells)


def _head_lines(axes: Axes, positions: torch.Tensor, values: torch.Tensor) -> None:
    """One line a head; values [N, H]."""
    for head in range(values.shape[1]):
        style = "-" if head < len(HEADS) else (0, (3, 1))
        axes.plot(positions, values[:, head], color=HEADS[head % len(HEADS)], linewidth=1.6, linestyle=style)


def _position_axis(axes: Axes, last: int) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xlim(1, max(2, last))
    _position_ticks(axes.xaxis, last)


def _position_ticks(axis: Any, last: int) -> None:
    """At most five powers of two from 1 on."""
    exponents = int(math.log2(max(2, last)))
    ticks = [2**exponent for exponent in range(0, exponents + 1, max(1, math.ceil(exponents / 4)))]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_ticklabels([format_tokens(tick) for tick in ticks])
    axis.set_minor_locator(NullLocator())


def plain(axes: Axes) -> None:
    """A pale grid and numbers, without frames and ticks."""
    axes.spines[:].set_visible(False)
    axes.grid(True, color=PALE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, which="both", labelsize=8, colors=INK)


def _label_outer(figure: Figure, label: str) -> None:
    """Number the left column alone, and name the abscissa once a column, below its last panel."""
    lowest: dict[int, Axes] = {}
    for axes in figure.axes:
        place = axes.get_subplotspec()
        assert place is not None
        if not place.is_first_col():
            axes.set_yticklabels([])
        lowest[place.colspan.start] = axes
    for axes in lowest.values():
        axes.set_xlabel(label, fontsize=9, color=INK)


def save(figure: Figure, path: Path) -> None:
    """Write a PNG in one step, so that nobody finds half of one."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=160, bbox_inches="tight", pad_inches=0.12)
    # With a palette of 256 colours it looks almost the same in a third of the bytes.
    with Image.open(drawn) as image, whole_file(path) as partial:
        image.convert("RGB").quantize(256, Image.Quantize.MEDIANCUT).save(partial, format="png", optimize=True)
