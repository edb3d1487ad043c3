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


LANGUAGE = _claim(
    "9",
    "A language model of 180M parameters",
    "180M parameters after 10B tokens of FineWeb-Edu: perplexity 16.48, HellaSwag 44.3, PIQA 70.9, ARC-E 58.8, "
    "ARC-C 34.2, WinoGrande 55.4, LAMBADA 39.8 (accuracies in %).",
    "the paper (arXiv 2605.06997)",
    "a training on 10B tokens, which needs GPUs",
    ("All of it: perplexity and benchmarks at this size, and twins of equal parameters, tokens and tuned rates.",),
)

LONG_TEXT = _claim(
    "10",
    "RULER and BABILong",
    "(No claim: the paper does not report these two benchmarks.)",
    "the paper's list of what it leaves open",
    "a language model that was trained on enough text to be asked",
    ("All of it; echo-ska recall-text asks both kinds of question of any model.",),
)
