"""How `scaling` is shown: a table of sizes, the fitted law with its interval, and where it points."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from matplotlib.figure import Figure

from echo_ska.benchmarks.cost import training_cost
from echo_ska.experiments.language.scaling_fit import Interval, PowerLaw, fit_power_law, interval, resampled
from echo_ska.experiments.trials.comparison import Results
from echo_ska.experiments.trials.figures import mean_with_range, save
from echo_ska.experiments.trials.studies import BLUE, VERMILION
from echo_ska.experiments.trials.texts import TEST
from echo_ska.experiments.trials.trial import config_of
from echo_ska.models import EchoConfig, preset
from echo_ska.models.presets import count_parameters
from echo_ska.training import RunRecord, book_path

TARGET = "echo-1b"


@functools.cache
def target_size() -> int:
    """Parameters of echo-1b without the embedding, which is also its head."""
    return _body(preset(TARGET))


def size_of(record: RunRecord) -> int:
    """Parameters of a record's model without embedding and head."""
    return _body(config_of(record))


def read_by(record: RunRecord) -> int:
    """Bytes that a training has read, each as often as it came."""
    parts = record.configuration
    return int(parts["training"]["steps"] * parts["data"]["batch_size"] * parts["data"]["length"])


def reading(files: Sequence[str], read: int, training_bytes: int) -> str:
    """ "one novel, read 7.4 times": the text of a training, and how often it went through it.

    Args:
        files: their names.
        read: bytes that were read, each as often as it came.
        training_bytes: of the text.
    """
    several = "one text" if len(files) == 1 else f"{len(files)} texts"
    what = "one novel" if list(files) == [book_path("train").name] else several
    return f"{what}, read {read / training_bytes:.1f} times"


def reading_of(results: Results) -> str | None:
    """`reading` of a comparison; None where every training diverged."""
    for record in _records(results):
        if "training_bytes" in record.figures:
            files = record.configuration["data"]["files"]
            return reading(files, read_by(record), record.figures["training_bytes"])
    return None


def losses_by_size(results: Results) -> dict[float, list[float]]:
    """Bits per byte, one a seed, by parameters without embedding and head; trainings that diverged are left out."""
    found: dict[float, list[float]] = {}
    for record in sorted(_records(results), key=size_of):
        if "diverged" not in record.figures:
            found.setdefault(size_of(record), []).append(_bits(record))
    return found


def fitted(results: Results) -> tuple[PowerLaw, list[PowerLaw]] | None:
    """The law of the means, and those of resampled seeds; None with fewer than three sizes."""
    losses = losses_by_size(results)
    if len(losses) < 3:
        return None
    return fit_power_law(list(losses), [fmean(values) for values in losses.values()]), resampled(losses)


def rows(results: Results) -> list[list[str]]:
    """A header, a row a size, and the law: its floor, its exponent, and what it says of echo-1b; then what was read."""
    table = [["width", "parameters", "learning rate", "operations", "bits per byte"]]
    for of_size in sorted(results.values(), key=lambda records: size_of(records[0])):
        first, config = of_size[0], config_of(of_size[0])
        found = [_bits(record) for record in of_size if "diverged" not in record.figures]
        seen = mean_with_range(found, "{:.3f}".format) or "diverged"
        flops = training_cost(config, first.configuration["data"]["length"], read_by(first)).flops
        rate = f"{first.figures['learning_rate']:g}"
        table.append([str(config.hidden_size), f"{size_of(first):,}", rate, f"{flops:.2e}", seen])
    if (law := fitted(results)) is not None:
        best, others = law
        floor = interval(best.floor, [other.floor for other in others])
        exponent = interval(best.exponent, [other.exponent for other in others])
        ahead = interval(best.at(target_size()), [other.at(target_size()) for other in others])
        table.append(["fit: floor E", "", "", "", shown(floor)])
        table.append(["fit: exponent a", "", "", "", shown(exponent)])
        table.append([f"{TARGET}, extrapolated", f"{target_size():,}", "", "", shown(ahead)])
    if (text := reading_of(results)) is not None:
        table.append([f"after {text}", "", "", "", ""])
    return table


def _records(results: Results) -> list[RunRecord]:
    return [record for records in results.values() for record in records]


def _bits(record: RunRecord) -> float:
    """At the one context that is scored."""
    (bits,) = record.figures["bits_per_byte"][TEST].values()
    return float(bits)


def _body(config: EchoConfig) -> int:
    tables = 1 if config.tie_word_embeddings else 2
    return count_parameters(config) - tables * config.vocab_size * config.hidden_size


def shown(found: Interval) -> str:
    """2.01 (1.90-2.12), the middle nine tenths of resampled seeds, or the value alone."""
    if found.low is None or found.high is None:
        return f"{found.value:.3f} (one seed: no interval)"
    return f"{found.value:.3f} ({found.low:.3f}-{found.high:.3f})"


def draw(results: Results, path: Path) -> None:
    """Bits per byte against parameters: every seed, the law, its interval, and the extrapolation dashed."""
    losses = losses_by_size(results)
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for size, values in losses.items():
        axes.plot([size] * len(values), values, "o", color=BLUE, markersize=5, alpha=0.8)
    law = fitted(results)
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
            xytext=(0, 20),
            textcoords="offset points",
            ha="right",
            color=VERMILION,
        )
    axes.set_xscale("log")
    axes.set_xlabel("parameters without embedding and head")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    text = reading_of(results)
    axes.set_title("Bits per byte of unseen text" + (f" after {text}" if text else ""), loc="left", fontsize=11)
    save(figure, path)
