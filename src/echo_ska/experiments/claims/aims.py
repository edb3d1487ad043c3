"""Ours: how far recall was meant to get, beyond what the paper claims."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from echo_ska.experiments.claims import lengths, mqar, transfer
from echo_ska.experiments.claims.claim import Claim, Criterion, Evidence, Finding, Table
from echo_ska.experiments.claims.words import accuracy, gain, points
from echo_ska.experiments.trials.arms import ECHO
from echo_ska.experiments.trials.comparison import Results

NEEDLES, CELLS, TASKS = 99.0, 99.9, 95.0
"""In %: needles found, pairs recalled in every cell, and the mean over six tasks."""


@dataclass(frozen=True)
class Recall:
    """What the three comparisons found."""

    needles: Results
    grid: Results
    tasks: Results


def gather(folder: Path) -> Evidence[Recall]:
    """All three; measured once each of them is."""
    parts = [claim.gather(folder) for claim in (lengths.CLAIM, mqar.CLAIM, transfer.CLAIM)]
    found = [part.measured for part in parts if part.measured is not None]
    return Evidence(
        Recall(*found) if len(found) == len(parts) else None,
        tuple(record for part in parts for record in part.records),
        tuple(phrase for part in parts for phrase in part.missing),
        sum(part.unused for part in parts),
    )


def _needles(recall: Recall) -> Finding:
    longest = list(recall.needles[ECHO][0].figures["accuracy"])[-1]
    found = {length: accuracy(recall.needles[ECHO], length) for length in (str(lengths.JUDGED), longest)}
    shown = ", ".join(f"{points(value)} at {int(length):,}" for length, value in found.items())
    return Finding(min(found.values()) >= NEEDLES, shown)


def _cells(recall: Recall) -> Finding:
    name, worst = min(mqar.cells(recall.grid, ECHO).items(), key=lambda item: item[1])
    return Finding(worst >= CELLS, f"lowest cell {points(worst)} ({name})")


def _tasks(recall: Recall) -> Finding:
    value = transfer.means(recall.tasks)[ECHO]
    return Finding(value >= TASKS, points(value))


def _above_controls(recall: Recall) -> Finding:
    mean = transfer.means(recall.tasks)
    lead = mean[ECHO] - max(mean[arm] for arm in transfer.CONTROLS)
    return Finding(lead > 0, gain(lead))


def _rows(recall: Recall) -> list[list[str]]:
    return [
        ["aim", "SSM+SKA"],
        [f"needles at {lengths.JUDGED:,} tokens and at the longest: {NEEDLES:g} %", _needles(recall).ours],
        [f"pairs by gaps: {CELLS:g} %", _cells(recall).ours],
        [f"mean of six tasks: {TASKS:g} %", _tasks(recall).ours],
        ["mean of six tasks: above both controls", _above_controls(recall).ours],
    ]


def _summary(recall: Recall) -> str:
    return (
        f"SSM+SKA finds needles in {_needles(recall).ours} tokens after training on {lengths.experiment.TASK.length}; "
        f"of the grid's cells, {_cells(recall).ours}; mean of the six tasks {_tasks(recall).ours}, "
        f"{_above_controls(recall).ours} against the better control."
    )


CLAIM: Claim[Recall] = Claim(
    key="aims",
    title="Our own aims for recall",
    statement=f"Trained at 64 tokens, SSM+SKA finds at least {NEEDLES:g} % of the needles at 4,096 tokens and at a "
    f"million; it recalls at least {CELLS:g} % in every cell of pairs by gaps; and its mean over the six tasks beyond "
    f"its curriculum is at least {TASKS:g} %, above both controls.",
    source="ours: the plan of the project had these figures; as criteria they were written down after the runs",
    commands=(
        "echo-ska reproduce length-generalisation",
        "echo-ska reproduce mqar-grid",
        "echo-ska reproduce transfer",
    ),
    gather=gather,
    criteria=(
        Criterion(f"Needles: at least {NEEDLES:g} % at 4,096 tokens and at 1,048,576", _needles),
        Criterion(f"Pairs by gaps: at least {CELLS:g} % in every cell", _cells),
        Criterion(f"Six tasks: a mean of at least {TASKS:g} %", _tasks),
        Criterion("Six tasks: above both controls", _above_controls),
    ),
    summary=_summary,
    tables=lambda recall: [Table("What was meant, and what the records say", _rows(recall))],
    caveats=(
        "The layout of the presets: with gate dropout, with stochastic depth and with the memory first, which were "
        "tried afterwards, the six tasks have claims of their own.",
        "The longest needles are few: 32 answers a seed at 1,048,576 tokens.",
    ),
    criteria_after=True,
)
