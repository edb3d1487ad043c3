"""How a comparison of arms is shown: a table of means and ranges over seeds, and curves with bands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from echo_ska.experiments.trials.figures import (
    COLOURS,
    MARKERS,
    label_lines,
    length_axis,
    mean_with_range,
    percent,
    save,
)
from echo_ska.experiments.trials.tuning import mean_and_range
from echo_ska.training import RunRecord

Results = Mapping[str, Sequence[RunRecord]]
"""By arm, a record a seed."""


def table_rows(results: Results, questions: Mapping[str, str], *, first: str = "model") -> list[list[str]]:
    """A header and a row an arm: the mean accuracy over seeds in %, and behind it the range where seeds differ.

    Args:
        results: what is shown.
        questions: headings by the question's name; a question that an arm was not asked leaves its cell empty.
        first: the heading of the first column.
    """
    rows = [[first, *questions.values()]]
    for arm, records in results.items():
        rows.append([with_count(arm, results), *(cell(records, question) for question in questions)])
    return rows


def with_count(arm: str, results: Results) -> str:
    """An arm's name, and where others have more seeds, how many it has: "ssm (1 seed)"."""
    count = len(results[arm])
    if count == max(map(len, results.values())):
        return arm
    return f"{arm} ({count} seed{'s' if count > 1 else ''})"


def converged(results: Results) -> dict[str, list[RunRecord]]:
    """The records of trainings that did not diverge, which alone were measured further; no arm without any."""
    found = {arm: [r for r in records if "diverged" not in r.figures] for arm, records in results.items()}
    return {arm: records for arm, records in found.items() if records}


def cell(records: Sequence[RunRecord], question: str) -> str:
    """Mean and range, e.g. "98.3 (97.1-99.9)"; empty if it was not asked."""
    if not records or any(question not in record.figures["accuracy"] for record in records):
        return ""
    return percent_range([record.figures["accuracy"][question] for record in records])


def percent_range(values: Sequence[float]) -> str:
    """Mean and range of shares in percent, e.g. "98.3 (97.1-99.9)"; the mean alone where they do not differ."""
    return mean_with_range(values, percent)


def draw_by_length(results: Results, lengths: Mapping[str, int], path: Path, title: str, chance: float) -> None:
    """Accuracy against length: a line an arm through the means, a band over the range of its seeds.

    Args:
        results: what is drawn.
        lengths: tokens by the question's name, ascending.
        path: the PNG.
        title: above the axes.
        chance: drawn as a dashed line.
    """
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    ends = {}
    for arm, records in results.items():
        asked = {
            name: length for name, length in lengths.items() if all(name in r.figures["accuracy"] for r in records)
        }
        ranges = [mean_and_range(records, name) for name in asked]
        means, lowest, highest = ([100 * value for value in values] for values in zip(*ranges, strict=True))
        at = list(asked.values())
        axes.fill_between(at, lowest, highest, color=COLOURS[arm], alpha=0.15, linewidth=0)
        axes.plot(
            at, means, color=COLOURS[arm], marker=MARKERS[arm], markersize=5, linewidth=2, clip_on=False, label=arm
        )
        ends[arm] = (at[-1], means[-1])
    length_axis(axes, list(lengths.values()))
    axes.set_xlim(min(lengths.values()), max(lengths.values()))
    axes.set_ylim(0, 100)
    axes.axhline(100 * chance, color="black", linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        "chance", (min(lengths.values()), 100 * chance), xytext=(4, 4), textcoords="offset points", fontsize=9
    )
    axes.set_title(title, loc="left", fontsize=11)
    if len({end for end, _ in ends.values()}) > 1:  # a label behind a line that ends early would lie on the others
        axes.legend(frameon=False, loc="center right")
    else:
        figure.draw_without_rendering()  # settles the axes' place, which the labels need
        label_lines(axes, ends, COLOURS)
    save(figure, path)
