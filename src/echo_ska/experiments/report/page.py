"""The report: one page of HTML that needs nothing but itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

import echo_ska
from echo_ska.experiments.claims import CLAIMS, RULE, Claim, Criterion, Finding, Level, Table, Weighed, weigh
from echo_ska.experiments.claims.claim import DAMAGED, unreadable
from echo_ska.experiments.report.provenance import provenance
from echo_ska.experiments.report.vector import inline_svg
from echo_ska.sealed import whole_file
from echo_ska.training.records import checkout_state


@dataclass(frozen=True)
class Entry:
    """A claim as the page shows it; all text is plain and is escaped by the page.

    Attributes:
        anchor: its place in the page's address.
        name: number and title.
        source, statement, level, sentence, tables, caveats, criteria_after, commands: as in `Claim` and `Verdict`.
        criteria: each with what it came to.
        picture: an SVG element, or None.
        picture_text: what it shows.
        provenance: terms and texts about the records.
        unused: records that were not used.
    """

    anchor: str
    name: str
    source: str
    statement: str
    level: Level
    sentence: str
    criteria: Sequence[tuple[Criterion[Any], Finding | None]]
    picture: Markup | None
    picture_text: str
    tables: Sequence[Table]
    caveats: Sequence[str]
    criteria_after: bool
    commands: Sequence[str]
    provenance: Sequence[tuple[str, str]]
    unused: int


def entry_of(weighed: Weighed) -> Entry:
    """What the page shows of a claim.

    Raises:
        ValueError: a record lacks figures that the picture needs.
    """
    claim, evidence, verdict = weighed.claim, weighed.evidence, weighed.verdict
    return Entry(
        anchor=f"claim-{claim.key}",
        name=f"Claim {claim.key}: {claim.title}" if claim.key.isdigit() else claim.title,
        source=claim.source,
        statement=claim.statement,
        level=verdict.level,
        sentence=verdict.sentence,
        criteria=list(zip(claim.criteria, verdict.findings, strict=True)),
        picture=_picture(weighed),
        picture_text=claim.picture,
        tables=weighed.tables,
        caveats=claim.caveats,
        criteria_after=claim.criteria_after,
        commands=claim.commands,
        provenance=provenance(evidence.records),
        unused=evidence.unused,
    )


def _picture(weighed: Weighed) -> Markup | None:
    draw, measured = weighed.claim.draw, weighed.evidence.measured
    if draw is None or measured is None:
        return None
    try:
        # matplotlib escapes the text that it draws, so its SVG can stand in the page as it is.
        drawn = inline_svg(lambda path: draw(measured, path), f"picture-{weighed.claim.key}", weighed.claim.picture)
    except DAMAGED as error:
        raise unreadable(weighed.claim, error) from error
    return None if drawn is None else Markup(drawn)


def render(entries: Sequence[Entry], folder: str) -> str:
    """The page.

    Args:
        entries: in their order.
        folder: the records' folder, as the page names it.
    """
    counted = Counter(entry.level for entry in entries)
    commit, dirty = checkout_state()
    environment = Environment(autoescape=True, undefined=StrictUndefined, finalize=_whole_units)
    environment.filters["slug"] = lambda level: str(level).replace(" ", "-")
    here = resources.files(__package__)
    template = environment.from_string((here / "page.html.jinja").read_text(encoding="utf-8"))
    return template.render(
        entries=entries,
        counts=[(level, counted[level]) for level in Level if counted[level]],
        rule=RULE,
        folder=folder,
        css=Markup((here / "page.css").read_text(encoding="utf-8")),
        version=echo_ska.__version__,
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        commit=None if commit is None else commit[:8] + (" with changes" if dirty else ""),
    )


def _whole_units(value: object) -> object:
    """Plain text with its percent signs kept to their numbers, where lines break."""
    return value.replace(" %", "\N{NO-BREAK SPACE}%") if type(value) is str else value


def write_report(folder: Path, output: Path, claims: Sequence[Claim[Any]] = CLAIMS) -> list[Weighed]:
    """Judge every claim by the records in `folder` and write the page to `output`, in one step.

    Raises:
        ValueError: records cannot be read; nothing is written.
    """
    weighed = [weigh(claim, folder) for claim in claims]
    page = render([entry_of(found) for found in weighed], f"{folder}/")
    with whole_file(output) as partial:
        partial.write_text(page, encoding="utf-8")
    return weighed
