"""How `scaling` is shown: a table of sizes, the fitted law with its interval, and where it points."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from matplotlib.figure import Figure

from echo_ska.experiments.figures import save
from echo_ska.experiments.scaling_fit import Interval, PowerLaw, fit_power_law, interval, resampled
from echo_ska.experiments.studies import BLUE, VERMILION
from echo_ska.models import preset
from echo_ska.models.presets import count_parameters
from echo_ska.training import RunRecord

TARGET = "echo-1b"


@functools.cache
def target_size() -> int:
    """Parameters of echo-1b without the embedding, which is also its head."""
    config = preset(TARGET)
    return count_parameters(config) - config.vocab_size * config.hidden_size


def losses_by_size(records: Sequence[RunRecord]) -> dict[float, list[float]]:
    """Bits per byte, one a seed, by parameters without embedding and head; trainings that diverged are left out."""
    found: dict[float, list[float]] = {}
    for record in sorted(records, key=lambda record: int(record.figures["parameters"])):
        if record.figures["bits_per_byte"] is not None:
            found.setdefault(record.figures["parameters"], []).append(record.figures["bits_per_byte"])
    return found


def fitted(records: Sequence[RunRecord]) -> tuple[PowerLaw, list[PowerLaw]] | None:
    """The law of the means, and those of resampled seeds; None with fewer than three sizes."""
    losses = losses_by_size(records)
    if len(losses) < 3:
        return None
    return fit_power_law(list(losses), [fmean(values) for values in losses.values()]), resampled(losses)


def rows(records: Sequence[RunRecord]) -> list[list[str]]:
    """A header, a row a size, and the law: its floor, its exponent, and what it says of echo-1b."""
    table = [["width", "parameters", "learning rate", "operations", "bits per byte"]]
    by_size: dict[int, list[RunRecord]] = {}
    for record in records:
        by_size.setdefault(record.figures["parameters"], []).append(record)
    for parameters, of_size in sorted(by_size.items()):
        first = of_size[0].figures
        found = [r.figures["bits_per_byte"] for r in of_size if r.figures["bits_per_byte"] is not None]
        seen = "diverged" if not found else f"{fmean(found):.3f}"
        if len(found) > 1:
            seen += f" ({min(found):.3f}-{max(found):.3f})"
        table.append(
            [str(first["width"]), f"{parameters:,}", f"{first['learning_rate']:g}", f"{first['flops']:.2e}", seen]
        )
    if (law := fitted(records)) is not None:
        best, others = law
        floor = interval(best.floor, [other.floor for other in others])
        exponent = interval(best.exponent, [other.exponent for other in others])
        ahead = interval(best.at(target_size()), [other.at(target_size()) for other in others])
        table.append(["fit: floor E", "", "", "", shown(floor)])
        table.append(["fit: exponent a", "", "", "", shown(exponent)])
        table.append([f"{TARGET}, extrapolated", f"{target_size():,}", "", "", shown(ahead)])
    return table


def shown(found: Interval) -> str:
    """2.01 (1.90-2.12), the middle nine tenths of resampled seeds, or the value alone."""
    if found.low is None or found.high is None:
        return f"{found.value:.3f} (one seed: no interval)"
    return f"{found.value:.3f} ({found.low:.3f}-{found.high:.3f})"


def draw(records: Sequence[RunRecord], path: Path) -> None:
    """Bits per byte against parameters: every seed, the law, its interval, and the extrapolation dashed."""
    losses = losses_by_size(records)
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for size, values in losses.items():
        axes.plot([size] * len(values), values, "o", color=BLUE, markersize=5, alpha=0.8)
    law = fitted(records)
    if law is not None:
        best, others = law
        inside = np.geomspace(min(losses), max(losses), 50)
        beyond = np.geomspace(max(losses), target_size(), 100)
        axes.plot(inside, [best.at(size) for size in inside], color=BLUE, linewidth=2)
        axes.plot(beyond, [best.at(size) for size in beyond], color=VERMILION, linewidth=2, linestyle=(0, (4, 3)))
        if others:
            everywhere = np.concatenate([inside, beyond])
            bands = [interval(best.at(size), [other.at(size) for other in others]) for size in everywhere]
            low, high = ([getattr(band, end) for band in bands] for end in ("low", "high"))
            axes.fill_between(everywhere, low, high, color=VERMILION, alpha=0.12, linewidth=0)
        axes.annotate(
            f"{TARGET}: an extrapolation",
            (target_size(), best.at(target_size())),
            xytext=(0, 8),
            textcoords="offset points",
            ha="right",
            color=VERMILION,
        )
    axes.set_xscale("log")
    axes.set_xlabel("parameters without embedding and head")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    tokens = records[0].figures["tokens"] if records else 0
    axes.set_title(f"Bits per byte of unseen novels after {tokens / 1e6:.1f} million bytes", loc="left", fontsize=11)
    save(figure, path)
