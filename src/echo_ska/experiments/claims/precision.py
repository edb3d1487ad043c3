"""Ours: recall per byte by fewer bits a number."""

from __future__ import annotations

from collections.abc import Sequence

from echo_ska.experiments.algebra import state_precision as experiment
from echo_ska.experiments.algebra import state_precision_report as report
from echo_ska.experiments.claims.claim import Claim, Criterion, Finding, Table
from echo_ska.experiments.claims.evidence import of_seeds
from echo_ska.experiments.claims.words import gain
from echo_ska.training import RunRecord

Records = Sequence[RunRecord]
TWO_BYTES = ("float16", "bfloat16")
GAINED, LOST = 5.0, 1.0
LOAD = 4.0
"""N : r, r being the rank in float32."""


def gained(records: Records, precision: str, memory: str = "SKA") -> dict[str, float]:
    """By kind of keys, points ahead of float32 in as many bytes, each rounded after every pair."""
    return {
        kind: 100
        * (
            report.accuracy(records, kind, memory, precision, report.ALWAYS, LOAD)
            - report.accuracy(records, kind, memory, "float32", report.ALWAYS, LOAD)
        )
        for kind in report.kinds_of(records)
    }


def _gains(records: Records, precisions: Sequence[str]) -> Finding | None:
    if len(report.kinds_of(records)) < len(experiment.KINDS):
        return None
    found = {(name, kind): points for name in precisions for kind, points in gained(records, name).items()}
    shown = "; ".join(f"{name}, {kind} keys {gain(points)}" for (name, kind), points in found.items())
    return Finding(min(found.values()) >= GAINED, shown)


def _running(records: Records) -> Finding:
    lost = {name: report.most_lost(records, "SKA", name) for name in TWO_BYTES}
    return Finding(max(lost.values()) <= LOST, ", ".join(f"{name} {gain(-points)}" for name, points in lost.items()))


def _summary(records: Records) -> str:
    said = "; ".join(
        f"{name} " + ", ".join(f"{gain(points)} ({kind} keys)" for kind, points in gained(records, name).items())
        for name in ("bfloat16", "int8")
    )
    pairs = round(LOAD * records[0].configuration["rank"])
    return f"SKA against itself in float32, {pairs} pairs in {records[0].figures['bytes']:,} bytes: {said}."


CLAIM: Claim[Records] = Claim(
    key="state-precision",
    title="More recall per byte by fewer bits a number",
    statement="At equal bytes of state, untrained, SKA whose sums have two bytes a number, or one, and the larger rank "
    "that this pays for, recalls more than in float32, even if every sum is rounded after every pair.",
    source="ours",
    commands=("echo-ska reproduce state-precision",),
    gather=lambda folder: of_seeds(
        folder, experiment.NAME, experiment.SEEDS, lambda record: str(record.configuration["kind"])
    ),
    criteria=(
        Criterion(
            f"At {LOAD:g} pairs a rank of float32 two bytes a number recall at least {GAINED:g} points more, whatever "
            "the keys",
            lambda r: _gains(r, TWO_BYTES),
        ),
        Criterion("One byte a number, the same", lambda r: _gains(r, ("int8",))),
        Criterion(
            f"In two bytes, rounding after every pair loses at most {LOST:g} point of rounding once, at every load",
            _running,
        ),
    ),
    summary=_summary,
    tables=lambda r: [
        Table("Right answers, %, each rounded after every pair", report.table_rows(r)),
        Table("Points that rounding after every pair loses of rounding once, at most", report.lost_rows(r)),
    ],
    draw=report.draw,
    picture="Right answers against pairs for three kinds of keys: a colour a precision, a style a memory.",
    caveats=(
        "Keys, values and lengths of trained models; power above 0, whose lag moment is not kept here.",
        "What peers gain: with random keys as much or more, with correlated and clustered ones much less; the table "
        "says what each memory recalls in each precision.",
        "Linear attention with its keys centred, the best peer where keys are correlated (recall-map), and steps of "
        "DeltaNet below 0.1.",
        "The criteria were set after a single memory had been looked at.",
    ),
)
