"""Claim 6: a small state of constant size against a cache that grows."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from echo_ska.experiments.claims.claim import Claim, Criterion, Evidence, Finding, Table
from echo_ska.experiments.claims.evidence import newest, records_of
from echo_ska.experiments.demo import report as demo_report
from echo_ska.experiments.trials.figures import short_bytes
from echo_ska.training import RunRecord

NAME = "state-bytes"
JUDGED = "131072"
HUNDREDS, PUBLISHED = 100, 4000


@dataclass(frozen=True)
class States:
    """The demo's result, or None, and the records of presets with their attention twins."""

    demo: dict[str, Any] | None
    presets: Sequence[RunRecord]


def gather(folder: Path) -> Evidence[States]:
    """The recorded demo and the presets.

    Raises:
        ValueError: a file cannot be read.
    """
    everything = records_of(folder, NAME)
    presets = newest(everything)
    path = folder / "demo.json"
    demo = _read_demo(path) if path.exists() else None
    missing = [] if presets else [f"all of {NAME}"]
    if demo is None:
        missing.append("the demo (demo.json)")
    records = (*presets, *([] if demo is None else [_as_record(demo, path)]))
    return Evidence(States(demo, presets) if records else None, records, tuple(missing), len(everything) - len(presets))


def _read_demo(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not a demo's result: {error}.") from None
    if not isinstance(found, dict) or "models" not in found:
        raise ValueError(f"{path} is not a demo's result: it has no models.")
    return found


def _as_record(demo: dict[str, Any], path: Path) -> RunRecord:
    try:
        return RunRecord(
            name="demo",
            configuration=demo["settings"],
            figures={"models": demo["models"]},
            seed=demo["settings"]["seed"],
            seconds=demo["seconds"],
            commit=demo["commit"],
            dirty=demo["dirty"],
            date="",
            hardware=demo["hardware"],
            versions=demo["versions"],
            peak_memory_bytes=None,
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a demo's result: it lacks {error}.") from None


def ska_bytes(record: RunRecord) -> dict[str, int]:
    """Bytes of a preset's SKA layers by tokens."""
    return {tokens: kinds["ska"] for tokens, kinds in record.figures["model"]["state_bytes"].items()}


def _constant(states: States) -> Finding | None:
    found = {_name(record): ska_bytes(record) for record in states.presets}
    if states.demo is not None:
        found["the demo's SSM+SKA"] = _demo_bytes(states.demo)
    if not found:
        return None
    shown = "; ".join(f"{name}: {_range(sizes.values())}" for name, sizes in found.items())
    return Finding(all(len(set(sizes.values())) == 1 for sizes in found.values()), shown)


def _range(sizes: Collection[int]) -> str:
    """The least and the most, or the one that there is."""
    return " to ".join(dict.fromkeys(short_bytes(size) for size in (min(sizes), max(sizes))))


def _demo_bytes(demo: dict[str, Any]) -> dict[str, int]:
    (echo,) = [model for model in demo["models"] if model["name"] == "ssm+ska"]
    sizes: dict[str, int] = echo["state_bytes"]
    return sizes


def ratios(states: States) -> dict[str, float]:
    """How many times as large the twin's KV cache is as the SKA layers' state, at the judged length, by preset."""
    return {_name(record): record.figures["ratio_of_kv_cache_to_ska"][JUDGED] for record in states.presets}


def _ratio(states: States, least: float) -> Finding | None:
    found = ratios(states)
    if not found:
        return None
    shown = "; ".join(f"{name}: {ratio:,.0f}" for name, ratio in found.items())
    return Finding(min(found.values()) >= least, shown)


def _summary(states: States) -> str:
    said = []
    if states.presets:
        ratio = ratios(states)
        largest = max(states.presets, key=lambda record: (record.figures["model"]["parameters"], -ratio[_name(record)]))
        said.append(
            f"at {int(JUDGED):,} tokens the twin's KV cache is {ratio[_name(largest)]:,.0f} times as large as "
            f"the state of the SKA layers of {_name(largest)}"
        )
    if states.demo is not None:
        sizes = _demo_bytes(states.demo)
        lengths = [int(length) for length in sizes]
        same = "all along" if len(set(sizes.values())) == 1 else f"growing to {max(sizes.values()):,}"
        said.append(
            f"the demo's SSM+SKA keeps {min(sizes.values()):,} bytes from {lengths[0]:,} to {lengths[-1]:,} "
            f"tokens, {same}"
        )
    sentence = "; ".join(said)
    return sentence[0].upper() + sentence[1:] + "."


def _name(record: RunRecord) -> str:
    return f"{record.configuration['preset']} in {record.configuration['dtype']}"


def _tables(states: States) -> list[Table]:
    tables = []
    if states.presets:
        rows = [["preset", "tokens", "SKA layers", "all of Echo", "twin's KV cache", "KV cache : SKA"]]
        for record in states.presets:
            lengths = list(ska_bytes(record))
            for tokens in dict.fromkeys((lengths[0], JUDGED, lengths[-1])):
                kinds = record.figures["model"]["state_bytes"][tokens]
                cache = record.figures["control"]["state_bytes"][tokens]["full_attention"]
                ratio = record.figures["ratio_of_kv_cache_to_ska"][tokens]
                sizes = [short_bytes(size) for size in (kinds["ska"], kinds["total"], cache)]
                rows.append([_name(record), f"{int(tokens):,}", *sizes, f"{ratio:,.0f}"])
        tables.append(Table("Bytes of one sequence's state, live up to 2,048 tokens and counted beyond", rows))
    if states.demo is not None:
        models = states.demo["models"]
        rows = [["tokens", *(f"{model['name']}, bytes" for model in models)]]
        rows += [
            [f"{int(length):,}", *(f"{model['state_bytes'][length]:,}" for model in models)]
            for length in models[0]["state_bytes"]
        ]
        tables.append(Table("The demo: bytes of one sequence's whole state, checked against the live cache", rows))
    return tables


def _draw(states: States, path: Path) -> bool:
    if states.demo is None:
        return False
    demo_report.draw(states.demo, path)
    return True


CLAIM: Claim[States] = Claim(
    key="6",
    title="77 KB against 384 MB",
    statement="SKA's state is about 77 KB, whatever the length, against 384 MB of KV cache for each layer of "
    "attention at 131,072 tokens.",
    source="the talk about the paper",
    commands=("echo-ska reproduce state-bytes", "echo-ska demo --json results/demo.json"),
    gather=gather,
    criteria=(
        Criterion("The state's bytes are the same at every length", _constant, "constant"),
        Criterion(
            f"At {int(JUDGED):,} tokens the twin's KV cache is at least {HUNDREDS} times as large as the SKA "
            "layers' state (every preset)",
            lambda s: _ratio(s, HUNDREDS),
            "about 5,000 (384 MB : 77 KB)",
        ),
        Criterion(
            f"It is at least {PUBLISHED:,} times as large (every preset)",
            lambda s: _ratio(s, PUBLISHED),
            "about 5,000 (384 MB : 77 KB)",
        ),
    ),
    summary=_summary,
    tables=_tables,
    draw=_draw,
    picture="The demo's four models: answers right, and bytes of state, against tokens; attention's bytes grow, "
    "SKA's do not.",
    caveats=(
        "Grouped-query or quantised caches, which keep less than the twin's.",
        "The inverse that an SKA layer also holds while it decodes, r x r float64 numbers a head: counted is the state "
        "as it is saved (docs/algebra.md).",
    ),
    criteria_after=True,
)
