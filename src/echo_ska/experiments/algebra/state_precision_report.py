"""What state-precision prints and draws, from its records alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from echo_ska.experiments.trials.figures import percent, save
from echo_ska.experiments.trials.studies import BLUE, GREEN, GREY, VERMILION
from echo_ska.training import RunRecord

COLOURS = {"float64": GREY, "float32": "black", "float16": BLUE, "bfloat16": GREEN, "int8": VERMILION}
STYLES = {"SKA": "-", "linear attention": ":", "DeltaNet": "--"}
ONCE, ALWAYS = "once", "always"


def kinds_of(records: Sequence[RunRecord]) -> list[str]:
    """The kinds of keys, in the order of the records."""
    return list(dict.fromkeys(record.configuration["kind"] for record in records))


def accuracy(records: Sequence[RunRecord], kind: str, memory: str, precision: str, way: str, load: float) -> float:
    """The share of right answers, mean over seeds."""
    return fmean(
        record.figures["cells"][f"{memory}, {precision}, {way}, {load:g}"]["accuracy"]
        for record in records
        if record.configuration["kind"] == kind
    )


def table_rows(records: Sequence[RunRecord], way: str = ALWAYS) -> list[list[str]]:
    """A header, and for every kind of keys, memory and precision its rank and its accuracy by load, in %."""
    configuration, ranks = records[0].configuration, records[0].figures["ranks"]
    loads = configuration["loads"]
    rows = [["keys", "memory", "stored as", "rank", *(f"N = {n}" for n in _pairs(records))]]
    for kind in kinds_of(records):
        for memory, by_precision in ranks.items():
            for precision, rank in by_precision.items():
                cells = [percent(accuracy(records, kind, memory, precision, way, load)) for load in loads]
                rows.append([kind, memory, precision, str(rank), *cells])
    return rows


def lost_rows(records: Sequence[RunRecord]) -> list[list[str]]:
    """A header, and for every memory and precision the most points that rounding after every pair loses of rounding
    once, over all kinds of keys and loads."""
    ranks = records[0].figures["ranks"]
    precisions = list(next(iter(ranks.values())))
    rows = [["memory", *precisions]]
    for memory in ranks:
        rows.append([memory, *(f"{most_lost(records, memory, precision):.1f}" for precision in precisions)])
    return rows


def most_lost(records: Sequence[RunRecord], memory: str, precision: str) -> float:
    """Points; 0 where nothing is lost."""
    return max(
        0.0,
        *(
            100 * (once - always)
            for kind in kinds_of(records)
            for load in records[0].configuration["loads"]
            for once, always in [
                [accuracy(records, kind, memory, precision, way, load) for way in (ONCE, ALWAYS)],
            ]
        ),
    )


def draw(records: Sequence[RunRecord], path: Path) -> None:
    """A panel a kind of keys: accuracy against pairs, a colour a precision, a style a memory."""
    kinds = kinds_of(records)
    figure = Figure(figsize=(3.6 * len(kinds), 4.2), layout="constrained")
    panels = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        _panel(axes, records, kind)
    panels[0].set_ylabel("right answers, %")
    precisions = next(iter(records[0].figures["ranks"].values()))
    handles = [Line2D([], [], color=COLOURS[name], label=name, linewidth=2) for name in precisions]
    handles += [Line2D([], [], color="black", linestyle=STYLES[name], label=name) for name in STYLES]
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), frameon=False, fontsize=9)
    save(figure, path)


def _panel(axes: Axes, records: Sequence[RunRecord], kind: str) -> None:
    pairs, loads = _pairs(records), records[0].configuration["loads"]
    for memory, by_precision in records[0].figures["ranks"].items():
        for precision in by_precision:
            line = [100 * accuracy(records, kind, memory, precision, ALWAYS, load) for load in loads]
            width = 2 if memory == "SKA" else 1.1
            axes.plot(pairs, line, STYLES[memory], color=COLOURS[precision], linewidth=width)
    axes.set_xscale("log", base=2)
    axes.set_xticks(pairs, [str(count) for count in pairs], fontsize=8)
    axes.minorticks_off()
    axes.set_ylim(0, 102)
    axes.set_xlabel("pairs")
    axes.set_title(f"{kind} keys", loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)


def _pairs(records: Sequence[RunRecord]) -> list[int]:
    configuration = records[0].configuration
    return [round(load * configuration["rank"]) for load in configuration["loads"]]
