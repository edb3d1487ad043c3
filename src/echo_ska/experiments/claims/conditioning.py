"""Claim 5: more accurate as the sequence grows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import fmean, median

from echo_ska.experiments.claims.claim import Claim, Criterion, Evidence, Finding, Table
from echo_ska.experiments.claims.evidence import file_of, of_arms
from echo_ska.experiments.claims.words import points
from echo_ska.experiments.recall import length_conditioning as experiment
from echo_ska.experiments.recall.length_conditioning import GATED, UNGATED
from echo_ska.experiments.trials.comparison import Results, converged
from echo_ska.training import RunRecord

FALL = 0.5
LEARNT = 50.0
MARGIN = 1.05
GROWTH = 10.0
SHORTEST, LONGEST = (str(experiment.LENGTHS[place]) for place in (0, -1))
Figure = Callable[[RunRecord, str], float]


def gather(folder: Path) -> Evidence[Results]:
    """Both arms; trainings that diverged count as missing."""
    path = file_of(folder, experiment.NAME)
    results = converged(experiment.recorded_results(path)) if path.exists() else {}
    return of_arms(folder, experiment.NAME, results, (GATED, UNGATED), experiment.SEEDS)


def _accuracy(record: RunRecord, length: str) -> float:
    return 100 * float(record.figures["accuracy"][length])


def _margin(record: RunRecord, length: str) -> float:
    return float(record.figures["conditioning"][length]["margin"])


def _lambda_min(record: RunRecord, length: str) -> float:
    return float(median(record.figures["conditioning"][length]["lambda_min"]))


def ends(results: Results, arm: str, figure: Figure) -> tuple[float, float]:
    """The mean over seeds at the shortest and at the longest length."""
    short, long = (fmean(figure(record, length) for record in results[arm]) for length in (SHORTEST, LONGEST))
    return short, long


def _does_not_fall(results: Results) -> Finding | None:
    found = {arm: ends(results, arm, _accuracy) for arm in (GATED, UNGATED)}
    if min(short for short, _ in found.values()) < LEARNT:
        return None
    ours = "; ".join(f"{arm}: {points(a)} to {points(b)}" for arm, (a, b) in found.items())
    return Finding(all(b >= a - FALL for a, b in found.values()), ours)


def _margin_grows(results: Results) -> Finding | None:
    short, long = ends(results, UNGATED, _margin)
    if short <= 0:  # nothing is learnt that could grow
        return None
    return Finding(long >= MARGIN * short, f"{short:.1f} to {long:.1f}")


def _lambda_grows(results: Results) -> Finding | None:
    short, long = ends(results, UNGATED, _lambda_min)
    if short <= 0:
        return None
    return Finding(long >= GROWTH * short, f"{short:.3g} to {long:.3g}")


def _summary(results: Results) -> str:
    (a, b), (low, high) = ends(results, UNGATED, _accuracy), ends(results, UNGATED, _lambda_min)
    return (
        f"From {int(SHORTEST):,} to {int(LONGEST):,} tokens, with every token stored, accuracy goes from "
        f"{points(a)} to {points(b)} and lambda_min from {low:.3g} to {high:.3g}."
    )


CLAIM: Claim[Results] = Claim(
    key="5",
    title="More accurate as the sequence grows",
    statement="The longer the sequence, the better conditioned the Gram matrix (its smallest eigenvalue grows), "
    "and the more accurate the read.",
    source="the talk about the paper",
    commands=("echo-ska reproduce length-conditioning",),
    gather=gather,
    criteria=(
        Criterion(
            f"Accuracy at {int(LONGEST):,} tokens is at most {FALL:g} points below that at {int(SHORTEST):,}, in "
            "both models",
            _does_not_fall,
            "grows",
        ),
        Criterion(
            "Every token stored: the right answer's margin over the best other logit grows by "
            f"{100 * (MARGIN - 1):.0f} % or more (accuracy itself has a ceiling)",
            _margin_grows,
            "grows",
        ),
        Criterion(
            f"Every token stored: lambda_min, median over heads, grows {GROWTH:g} times or more", _lambda_grows, "grows"
        ),
    ),
    summary=_summary,
    tables=lambda r: [Table("Medians over heads, means over seeds", experiment.rows(r))],
    draw=experiment.draw,
    picture="Accuracy, margin and lambda_min against length, side by side; every seed thin, the mean thick.",
    caveats=("Larger models, other tasks than needles, and more than one learning rate.",),
)
