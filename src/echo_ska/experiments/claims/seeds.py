"""Ours: the recipe learns from every seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from echo_ska.experiments.claims.claim import Claim, Criterion, Evidence, Finding, Table
from echo_ska.experiments.claims.evidence import of_seeds
from echo_ska.experiments.claims.words import points
from echo_ska.experiments.demo import seeds as experiment
from echo_ska.experiments.trials.figures import percent, short_number
from echo_ska.training import RunRecord

FAR = 65_536
Seeds = Sequence[RunRecord]


def gather(folder: Path) -> Evidence[Seeds]:
    """A record a seed."""
    return of_seeds(folder, experiment.NAME, experiment.SEEDS)


def lowest(records: Seeds, longest: int) -> tuple[float, int, int]:
    """The lowest accuracy, %, of any seed at any length up to `longest`; that seed, and that length."""
    return min(
        (100 * accuracy, record.seed, int(length))
        for record in records
        for length, accuracy in record.figures["accuracy"].items()
        if int(length) <= longest
    )


def _all_right(records: Seeds, longest: int) -> Finding:
    accuracy, seed, length = lowest(records, longest)
    return Finding(accuracy >= 100 * experiment.ENOUGH, f"lowest {points(accuracy)} (seed {seed} at {length:,} tokens)")


def _rows(records: Seeds) -> list[list[str]]:
    ordered = sorted(records, key=lambda record: record.seed)
    lengths = list(ordered[0].figures["accuracy"])
    rows = [["seed", *(short_number(int(length)) for length in lengths)]]
    rows += [[str(r.seed), *(percent(r.figures["accuracy"][length]) for length in lengths)] for r in ordered]
    rows.append(["answers a seed", *(f"{ordered[0].figures['answers'][length]:,}" for length in lengths)])
    return rows


def _summary(records: Seeds) -> str:
    kept = [record for record in records if lowest([record], experiment.LONGEST)[0] >= 100 * experiment.ENOUGH]
    return (
        f"{len(kept)} of {len(records)} seeds answer at least {100 * experiment.ENOUGH:g} % at every length up to "
        f"{experiment.LONGEST:,} tokens; the lowest value of any is {points(lowest(records, experiment.LONGEST)[0])}."
    )


CLAIM: Claim[Seeds] = Claim(
    key="seeds",
    title="Every seed learns, and answers far beyond its training",
    statement="The demo's SSM+SKA learns to recall eight pairs in 64 tokens from every seed, and then answers in up to "
    "1,048,576.",
    source="ours",
    commands=("echo-ska reproduce demo-seeds",),
    gather=gather,
    criteria=(
        Criterion(f"Every seed: at least 99 % at every length up to {FAR:,} tokens", lambda r: _all_right(r, FAR)),
        Criterion(
            f"Every seed: at least 99 % at every length up to {experiment.LONGEST:,} tokens",
            lambda r: _all_right(r, experiment.LONGEST),
        ),
    ),
    summary=_summary,
    tables=lambda r: [Table("Answers right, %, by tokens", _rows(r))],
    draw=experiment.draw,
    picture="Answers right against tokens: every seed thin, the median and the lowest seed thick.",
    caveats=("Other tasks, sizes and loads: eight pairs, width 64, rank 16; few answers at the longest lengths.",),
    criteria_after=True,
)
