"""Ours: with the same aids for all, how much is the solve worth?"""

from __future__ import annotations

from pathlib import Path

from echo_ska.experiments.claims.claim import Claim, Criterion, Evidence, Finding, Table
from echo_ska.experiments.claims.evidence import file_of, of_arms, records_of, unmeasured
from echo_ska.experiments.claims.words import gain
from echo_ska.experiments.recall import aids as experiment
from echo_ska.experiments.recall.aids import ALL, MIXERS, QUESTIONS, TAKEN, draw, rows
from echo_ska.experiments.trials.comparison import Results
from echo_ska.experiments.trials.tuning import mean_and_range

TIE = 1.0
"""Points that count as level."""
OURS, BLENDED = "SKA, plain ridge", "SKA, blended filter"
PEERS = tuple(name for name in MIXERS if name not in (OURS, BLENDED))


def gather(folder: Path) -> Evidence[Results]:
    """All mixers with all aids, and without each."""
    if not records_of(folder, experiment.NAME):
        return unmeasured(folder, experiment.NAME)
    path = file_of(folder, experiment.NAME)
    names = [f"{mixer}, {taken}" for mixer in MIXERS for taken in TAKEN]
    found = of_arms(folder, experiment.NAME, experiment.recorded_results(path), names, experiment.SEEDS)
    tried = tuple(experiment.comparison().tries(path))
    return Evidence(found.measured, (*found.records, *tried), found.missing, max(found.unused - len(tried), 0))


def accuracy(results: Results, mixer: str, taken: str, question: str) -> float:
    """In %, the mean over seeds."""
    return 100 * mean_and_range(results[f"{mixer}, {taken}"], question)[0]


def lead(results: Results, taken: str, question: str) -> tuple[float, str]:
    """Points by which plain ridge is ahead of the best peer that has the same aids, and which that is."""
    best = max(PEERS, key=lambda peer: accuracy(results, peer, taken, question))
    return accuracy(results, OURS, taken, question) - accuracy(results, best, taken, question), best


def _with_all(results: Results) -> Finding:
    leads = {question.name: lead(results, ALL, question.name) for question in QUESTIONS}
    shown = "; ".join(f"{gain(points)} at {name} tokens ({best})" for name, (points, best) in leads.items())
    return Finding(all(points >= -TIE for points, _ in leads.values()), shown)


def _without_any(results: Results) -> Finding:
    leads = {taken: min(lead(results, taken, question.name)[0] for question in QUESTIONS) for taken in TAKEN}
    shown = "; ".join(f"{taken} {gain(points)}" for taken, points in leads.items() if taken != ALL)
    return Finding(min(leads.values()) >= -TIE, shown)


def _more_than_aids(results: Results) -> Finding:
    """What the solve adds to linear attention, against the most that an aid adds to SKA, far beyond the training."""
    far = QUESTIONS[-1].name
    whole = accuracy(results, OURS, ALL, far)
    solve = whole - accuracy(results, "linear attention", ALL, far)
    lost = {taken: whole - accuracy(results, OURS, taken, far) for taken in TAKEN if taken != ALL}
    worst = max(lost, key=lambda taken: lost[taken])
    return Finding(solve >= lost[worst], f"the solve {gain(solve)}, {worst} {gain(-lost[worst])}")


CLAIM: Claim[Results] = Claim(
    key="aids",
    title="What the solve is worth where all have the aids",
    statement="Short convolutions, delayed keys, a tied start, a write gate and a norm of the read help every mixer. "
    "With the same aids by the same code, SKA's ridge solve still recalls at least as much as linear attention, "
    "DeltaNet and gated DeltaNet at equal rank, and adds more than any one aid.",
    source="ours",
    commands=("echo-ska reproduce aids",),
    gather=gather,
    criteria=(
        Criterion(
            f"With all aids, plain ridge is at most {TIE:g} point behind the best peer, at the training's length and "
            "at 1,024 tokens",
            _with_all,
        ),
        Criterion("The same whichever aid is taken from all of them", _without_any),
        Criterion(
            "At 1,024 tokens the solve adds more to linear attention than the most important aid adds to SKA",
            _more_than_aids,
        ),
    ),
    summary=lambda r: (
        f"With the same aids, SKA's plain ridge minus the best peer: {_with_all(r).ours}; at "
        f"{QUESTIONS[-1].name} tokens, what the solve adds to linear attention, and what SKA loses without the aid "
        f"that matters most: {_more_than_aids(r).ours}."
    ),
    tables=lambda r: [
        Table(f"Accuracy, %, at {question.name} tokens, mean over seeds (range)", rows(r, question.name))
        for question in QUESTIONS
    ],
    draw=draw,
    picture="A grid of what was taken away by mixer, at the training's length and at ten times it.",
    caveats=(
        "One task and one load, as many pairs as a head has ranks; equal rank is not equal bytes (docs/algebra.md).",
        "Each mixer keeps the learning rate that is best with all aids.",
    ),
    criteria_after=True,
)
