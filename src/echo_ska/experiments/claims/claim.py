"""What a claim is, and how the records of its experiment decide on it.

A claim has criteria, each with its threshold in its text, the weakest form of the claim's heart first. One rule for all
(`RULE`) makes the verdict of what holds, so that whoever disagrees with a threshold can see which one to move.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Generic, TypeVar

from echo_ska.training import RunRecord

M = TypeVar("M")
"""What the records of a claim's experiments hold, in the form that its criteria read."""


class Level(StrEnum):
    """A verdict in words."""

    REPRODUCED = "reproduced"
    PARTLY = "partly"
    NOT_REPRODUCED = "not reproduced"
    IN_PART = "measured in part"
    UNMEASURED = "not measured yet"


RULE = (
    "Reproduced: every criterion holds. Partly: the first one holds, not all. Not reproduced: the first one fails. "
    "Measured in part: records, seeds or criteria are missing. The first criterion is the weakest form of the claim."
)
"""What every verdict follows from, in the words of the page."""


@dataclass(frozen=True)
class Finding:
    """What a criterion came to.

    Attributes:
        holds: whether it does.
        ours: our figures, with units.
    """

    holds: bool
    ours: str


@dataclass(frozen=True)
class Criterion(Generic[M]):
    """A part of a claim that figures can decide.

    Attributes:
        text: what has to hold, with its threshold.
        judge: decides; None where the figures that it needs are not recorded.
        paper: the published figure, if there is one.
    """

    text: str
    judge: Callable[[M], Finding | None]
    paper: str = ""


@dataclass(frozen=True)
class Table:
    """A header and rows of text under a caption."""

    caption: str
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Evidence(Generic[M]):
    """What is recorded for a claim.

    Attributes:
        measured: what the criteria read; None while too little is recorded to judge anything.
        records: all that stand behind it, those of tuning included.
        missing: what the experiment would still have to measure, a phrase each.
        unused: records in the same files that were not used: of other settings, or older ones of the same run.
    """

    measured: M | None = None
    records: tuple[RunRecord, ...] = ()
    missing: tuple[str, ...] = ()
    unused: int = 0


@dataclass(frozen=True)
class Claim(Generic[M]):
    """A claim of the paper's, the talk's or ours.

    Attributes:
        key: its number in the paper's list, or a word; also its place in the page's address.
        title: a few words.
        statement: what is claimed.
        source: by whom.
        commands: what measures it anew.
        gather: reads the evidence from the folder of the records.
        criteria: the heart's weakest form first.
        summary: one sentence with our figures.
        tables: to be shown.
        draw: draws the picture to a path; None if there is none.
        picture: what the picture shows, for those who do not see it.
        caveats: what was not measured, or not as the paper did.
        criteria_after: whether the criteria were written when the first records were there, and so predict nothing.
    """

    key: str
    title: str
    statement: str
    source: str
    commands: tuple[str, ...]
    gather: Callable[[Path], Evidence[M]]
    criteria: tuple[Criterion[M], ...]
    summary: Callable[[M], str]
    tables: Callable[[M], Sequence[Table]]
    draw: Callable[[M, Path], object] | None = None
    picture: str = ""
    caveats: tuple[str, ...] = ()
    criteria_after: bool = False


@dataclass(frozen=True)
class Verdict:
    """What the records say of a claim.

    Attributes:
        level: in words.
        sentence: one sentence, with our figures where there are any.
        findings: a criterion each, None where it could not be judged.
    """

    level: Level
    sentence: str
    findings: tuple[Finding | None, ...]


@dataclass(frozen=True)
class Weighed:
    """A claim with all that the records say of it."""

    claim: Claim[Any]
    evidence: Evidence[Any]
    verdict: Verdict
    tables: Sequence[Table]


DAMAGED = (KeyError, IndexError, TypeError, AttributeError)
"""What figures raise that are not there, or not of their type."""


def weigh(claim: Claim[Any], folder: Path) -> Weighed:
    """Read the evidence of a claim from `folder` and judge it.

    Raises:
        ValueError: a file of records cannot be read, or a record lacks figures that the claim is judged by.
    """
    try:
        evidence = claim.gather(folder)
        verdict = judge(claim, evidence)
        tables = () if evidence.measured is None else claim.tables(evidence.measured)
    except DAMAGED as error:
        raise unreadable(claim, error) from error
    return Weighed(claim, evidence, verdict, tables)


def judge(claim: Claim[M], evidence: Evidence[M]) -> Verdict:
    """The verdict on a claim, by `RULE`."""
    if evidence.measured is None:
        level = Level.IN_PART if evidence.records else Level.UNMEASURED
        return Verdict(level, _missing(evidence), (None,) * len(claim.criteria))
    findings = tuple(criterion.judge(evidence.measured) for criterion in claim.criteria)
    sentence = claim.summary(evidence.measured)
    if evidence.missing or None in findings:
        held = sum(finding is not None and finding.holds for finding in findings)
        judged = sum(finding is not None for finding in findings)
        so_far = f"So far {held} of {judged} criteria hold." if judged else ""
        said = " ".join(part for part in (sentence, so_far, _missing(evidence)) if part)
        return Verdict(Level.IN_PART, said, findings)
    holds = [finding is not None and finding.holds for finding in findings]
    level = Level.REPRODUCED if all(holds) else Level.PARTLY if holds[0] else Level.NOT_REPRODUCED
    return Verdict(level, sentence, findings)


def unreadable(claim: Claim[Any], error: Exception) -> ValueError:
    """Records without the figures that they should have, as an error for people."""
    return ValueError(
        f"the records of claim {claim.key} ({claim.title}) lack figures that it needs ({type(error).__name__}: "
        f"{error}): take the damaged line out of its file, or record it anew"
    )


def _missing(evidence: Evidence[M]) -> str:
    return f"Missing: {'; '.join(evidence.missing)}." if evidence.missing else ""
