"""Claims that nothing here measures yet. Each becomes an entry of its own once an experiment records something."""

from __future__ import annotations

from typing import Any

from echo_ska.experiments.claims.claim import Claim, Evidence


def _claim(key: str, title: str, statement: str, source: str, missing: str, caveats: tuple[str, ...]) -> Claim[Any]:
    return Claim(
        key=key,
        title=title,
        statement=statement,
        source=source,
        commands=(),
        gather=lambda _: Evidence(missing=(missing,)),
        criteria=(),
        summary=lambda _: "",
        tables=lambda _: (),
        caveats=caveats,
    )


LONG_TEXT = _claim(
    "10",
    "RULER and BABILong",
    "(No claim: the paper does not report these two benchmarks.)",
    "the paper's list of what it leaves open",
    "a language model that was trained on enough text to be asked",
    ("All of it; echo-ska recall-text asks both kinds of question of any model.",),
)
