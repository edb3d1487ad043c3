"""Ours: the state's size, not the model's, sets where recall breaks down."""

from __future__ import annotations

from pathlib import Path

from echo_ska.experiments.claims.claim import Claim, Criterion, Evidence, Finding, Table
from echo_ska.experiments.claims.evidence import file_of, missing_seeds, records_of, unmeasured
from echo_ska.experiments.claims.words import accuracy
from echo_ska.experiments.recall import cliff as experiment
from echo_ska.experiments.trials.recorded import recorded
from echo_ska.training import RunRecord

HALF = 0.5
LEARNT = 50.0
APART = 10.0
RISE = 30.0


def gather(folder: Path) -> Evidence[list[RunRecord]]:
    """The newest record of every width, rank and seed; measured once each width and rank has a seed."""
    everything = records_of(folder, experiment.NAME)
    if not everything:
        return unmeasured(folder, experiment.NAME)
    runs = [trial.with_(seed=seed).recorded_run() for trial in experiment.trials() for seed in range(experiment.SEEDS)]
    found = [record for record in recorded(experiment.NAME, runs, file_of(folder, experiment.NAME)) if record]
    counts = {trial.arm.name: 0 for trial in experiment.trials()}
    for record in found:
        counts[record.figures["arm"]] += 1
    missing = tuple(missing_seeds(counts, experiment.SEEDS))
    whole = all(counts.values())
    return Evidence(found if whole else None, tuple(found), missing, len(everything) - len(found))


Grid = dict[int, dict[int, float]]
"""Accuracy, %, by width and rank, the mean over seeds."""


def grids(records: list[RunRecord]) -> list[Grid]:
    """One for each length that was asked."""
    return [
        {
            width: {
                rank: accuracy(
                    [r for r in records if r.figures["arm"] == experiment.arm(width, rank).name], question.name
                )
                for rank in experiment.RANKS
            }
            for width in experiment.WIDTHS
        }
        for question in experiment.QUESTIONS
    ]


def by_width(records: list[RunRecord]) -> float:
    """The largest difference between two widths at one rank and length, points."""
    columns = [
        [found[width][rank] for width in experiment.WIDTHS] for found in grids(records) for rank in experiment.RANKS
    ]
    return max(max(column) - min(column) for column in columns)


def by_rank(records: list[RunRecord]) -> float:
    """The smallest rise from the smallest rank to the largest at one width and length, points."""
    first, last = experiment.RANKS[0], experiment.RANKS[-1]
    return min(of_width[last] - of_width[first] for found in grids(records) for of_width in found.values())


def _state_counts_more(records: list[RunRecord]) -> Finding | None:
    width, rank = by_width(records), by_rank(records)
    if max(max(of_width.values()) for found in grids(records) for of_width in found.values()) < LEARNT:
        return None  # where nothing is learnt, nothing breaks down
    return Finding(width <= HALF * rank, f"{width:.1f} against {rank:.1f} points")


CLAIM: Claim[list[RunRecord]] = Claim(
    key="cliff",
    title="The state sets the cliff, not the model",
    statement="Where recall breaks down depends on the size of the state, not on the size of the model around it.",
    source="ours",
    commands=("echo-ska reproduce cliff",),
    gather=gather,
    criteria=(
        Criterion(
            f"{experiment.TASK.pairs} pairs: the largest difference between widths at one rank is at most {HALF:g} "
            "of the smallest difference that the rank makes at one width",
            _state_counts_more,
        ),
        Criterion(
            f"Widths are at most {APART:g} points apart at every rank",
            lambda r: Finding(by_width(r) <= APART, f"at most {by_width(r):.1f} points"),
        ),
        Criterion(
            f"From rank {experiment.RANKS[0]} to {experiment.RANKS[-1]} accuracy rises by {RISE:g} points or more "
            "at every width",
            lambda r: Finding(by_rank(r) >= RISE, f"at least {by_rank(r):.1f} points"),
        ),
    ),
    summary=lambda r: (
        f"At one rank the widths {experiment.WIDTHS[0]} to {experiment.WIDTHS[-1]} differ by at most "
        f"{by_width(r):.1f} points; from rank {experiment.RANKS[0]} to {experiment.RANKS[-1]} accuracy "
        f"rises by at least {by_rank(r):.1f}."
    ),
    tables=lambda r: [Table(f"Accuracy, %, on {experiment.TASK.pairs} pairs: mean over seeds", experiment.rows(r))],
    draw=experiment.draw,
    picture="Accuracy against rank, a line a width: where the state alone counts, the lines lie on one another.",
    caveats=("Depth, other mixers, and the learnt power: plain ridge regression (power 0) at one learning rate.",),
)
