"""What is recorded of in-context-regression, as tables read it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from echo_ska.experiments.regression.model import BY_HAND
from echo_ska.training import RunRecord

PAIRS = 24
"""In a training sequence."""
MEASURED_AT = (0, 10, 30, 100, 300)
"""Steps after which models are measured, and after the last."""
CONTEXTS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96)
SEEN, BEYOND = "1-24", "25-96"
"""Names of the means over all numbers of pairs that training has, and over those that it has not."""

Results = Mapping[tuple[str, int], Sequence[RunRecord]]
"""By arm and number of layers, a record a seed."""


def last_step(record: RunRecord) -> str:
    """The step after which a record was measured last."""
    return list(record.figures["measured"])[-1]


def figure_of(record: RunRecord, quantity: str, pairs: str, step: str | None = None) -> float:
    """A measured figure, after the last step unless told; infinite where training diverged before."""
    measured = record.figures["measured"]
    if step is None:
        if "diverged" in record.figures:
            return math.inf
        step = last_step(record)
    return float(measured[step][quantity][pairs]) if step in measured else math.inf


def along_rows(results: Results) -> list[list[str]]:
    """A row an arm and depth: the distance to ridge over the trained numbers of pairs, by steps."""
    longest = max(int(last_step(record)) for records in results.values() for record in records)
    steps = [str(step) for step in (*(s for s in MEASURED_AT if s < longest), longest)]
    table = [["model", "layers", "rate", *(f"{int(step):,} steps" for step in steps)]]
    for (arm, layers), records in results.items():
        rate = records[0].figures["learning_rate"]
        reached = [step for step in steps if int(step) <= int(last_step(records[0]))]
        cells = [_cell([figure_of(record, "ridge", SEEN, step) for record in records]) for step in reached]
        table.append([arm, str(layers), f"{rate:g}" if rate else "", *cells, *[""] * (len(steps) - len(reached))])
    return table


def pairs_rows(results: Results) -> list[list[str]]:
    """A row an arm and depth: distances after training by pairs in context, and the error; first what is known."""
    shown = ("4", "12", "24", "48", "96")
    table = [
        [
            "model",
            "layers",
            *(f"to ridge, {pairs} pairs" for pairs in shown),
            "to Hebbian, 24",
            "error, 24",
            "error, 96",
        ]
    ]
    for (arm, layers), records in results.items():
        if arm == BY_HAND:
            of = records[0].figures["known"]
            apart = [_short(of["distance"][pairs]) for pairs in shown]
            errors = {
                name: [_short(of[f"{name} error"][pairs]) for pairs in ("24", "96")] for name in ("ridge", "hebbian")
            }
            table.append(
                ["best ridge regression", "", *["0"] * len(shown), _short(of["distance"]["24"]), *errors["ridge"]]
            )
            table.append(["best Hebbian read", "", *apart, "0", *errors["hebbian"]])
        asked = [*(("ridge", pairs) for pairs in shown), ("hebbian", "24"), ("error", "24"), ("error", "96")]
        means = [fmean(figure_of(record, *one) for record in records) for one in asked]
        table.append([arm, str(layers), *(_short(mean) for mean in means)])
    return table


def _cell(values: Sequence[float]) -> str:
    """Mean, and behind it the highest where seeds differ."""
    mean, highest = _short(fmean(values)), _short(max(values))
    return mean if mean == highest else f"{mean} ({highest})"


def _short(value: float) -> str:
    """Two digits."""
    return "diverged" if math.isinf(value) else f"{value:.2g}"
