"""The one rule that makes a verdict of criteria, and what is said of records that are missing or damaged."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from made_up import made_up

from echo_ska.experiments.claims import CLAIMS, Claim, Criterion, Evidence, Finding, Level, Table, weigh
from echo_ska.experiments.claims.claim import judge
from echo_ska.training.records import append

RECORD = made_up("tiny", {}, {"value": 3})


def at_least(least: int) -> Criterion[int]:
    return Criterion(f"at least {least}", lambda value: Finding(value >= least, str(value)))


TINY: Claim[int] = Claim(
    key="0",
    title="Tiny",
    statement="It is large.",
    source="nobody",
    commands=(),
    gather=lambda folder: Evidence(3, (RECORD,)),
    criteria=(at_least(1), at_least(5)),
    summary=lambda value: f"It is {value}.",
    tables=lambda value: [Table("A table", [["value"], [str(value)]])],
)


@pytest.mark.parametrize(
    ("evidence", "level", "sentence"),
    [
        (Evidence(7, (RECORD,)), Level.REPRODUCED, "It is 7."),
        (Evidence(3, (RECORD,)), Level.PARTLY, "It is 3."),
        (Evidence(0, (RECORD,)), Level.NOT_REPRODUCED, "It is 0."),
        (
            Evidence(3, (RECORD,), ("a seed",)),
            Level.IN_PART,
            "It is 3. So far 1 of 2 criteria hold. Missing: a seed.",
        ),
        (Evidence(None, (RECORD,), ("an arm",)), Level.IN_PART, "Missing: an arm."),
        (Evidence(None, (), ("all of it",)), Level.UNMEASURED, "Missing: all of it."),
    ],
)
def test_one_rule_makes_every_verdict(evidence, level, sentence):
    verdict = judge(TINY, evidence)
    assert (verdict.level, verdict.sentence) == (level, sentence)
    assert len(verdict.findings) == len(TINY.criteria)


def test_a_criterion_without_figures_leaves_the_verdict_open():
    unknown: Criterion[int] = Criterion("unknown", lambda _: None)
    verdict = judge(replace(TINY, criteria=(at_least(1), unknown)), Evidence(3, (RECORD,)))
    assert verdict.level is Level.IN_PART
    assert verdict.sentence == "It is 3. So far 1 of 1 criteria hold."


def test_figures_that_are_not_there_end_in_a_sentence(tmp_path: Path):
    broken = replace(TINY, gather=lambda folder: Evidence(int(RECORD.figures["absent"])))
    with pytest.raises(ValueError, match=r"claim 0 \(Tiny\) lack figures that it needs \(KeyError: 'absent'\)"):
        weigh(broken, tmp_path)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.key)
def test_nothing_recorded_is_not_measured_yet(claim, tmp_path):
    found = weigh(claim, tmp_path)
    assert found.verdict.level is Level.UNMEASURED
    assert found.verdict.sentence.startswith("Missing: ")
    assert found.tables == ()


FILES = {
    "1": "mqar-grid",
    "2": "length-generalisation",
    "3": "transfer",
    "4": "filter-ablation",
    "5": "length-conditioning",
    "6": "state-bytes",
    "7": "bench",
    "8": "bench",
    "9": "language-model",
    "9-50m": "language-model-50m",
    "9-180m": "language-model-180m",
    "10": "zero-shot",
    "11": "gradient-flow",
    "look-ahead": "filter-ablation",
    "seeds": "demo-seeds",
    "cliff": "cliff",
    "aids": "aids",
    "gate-dropout": "transfer",
    "stochastic-depth": "transfer",
    "memory-first": "memory-first",
    "aims": "transfer",
    "write-gate": "write-gate",
    "recall-per-byte": "recall-per-byte",
    "drop-in": "replace-attention",
    "context-parallel": "context-parallel",
    "operator-error": "operator-error",
    "one-off-distractors": "one-off-distractors",
    "recall-map": "recall-map",
    "state-precision": "state-precision",
    "mqar-frontier": "mqar-frontier",
    "in-context-regression": "in-context-regression",
}


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.key)
def test_damaged_records_end_in_a_sentence(claim, tmp_path):
    path = tmp_path / f"{FILES[claim.key]}.jsonl"
    append(made_up(FILES[claim.key], {}, {}), path)
    with path.open("a", encoding="utf-8") as file:
        file.write('{"name": "cut o')
    with pytest.raises(ValueError, match=f"Line 2 of .*{path.name} is not a run record"):
        weigh(claim, tmp_path)


def test_a_damaged_demo_ends_in_a_sentence(tmp_path):
    (claim,) = [claim for claim in CLAIMS if claim.key == "6"]
    for text, words in (("{", "is not a demo's result"), ("[]", "it has no models"), ('{"models": []}', "it lacks")):
        (tmp_path / "demo.json").write_text(text)
        with pytest.raises(ValueError, match=words):
            weigh(claim, tmp_path)


def test_claims_are_told_apart_and_say_how_to_measure_them():
    keys = [claim.key for claim in CLAIMS]
    assert len(set(keys)) == len(keys)
    assert [key for key in keys if key.isdigit()] == [str(number) for number in range(1, 12)]
    for claim in CLAIMS:
        assert re.fullmatch(r"[\w-]+", claim.key)  # which a page links to
        assert claim.criteria
        assert claim.commands
        assert claim.caveats
        assert bool(claim.draw) == bool(claim.picture)
