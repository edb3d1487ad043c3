"""Ours: a sequence split over processes costs a message of constant size a layer, and computes the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from echo_ska.experiments.claims.claim import Claim, Criterion, Evidence, Finding, Table
from echo_ska.experiments.claims.evidence import newest, records_of, unmeasured
from echo_ska.experiments.state import context_parallel as experiment
from echo_ska.experiments.state.context_parallel_report import byte_rows, difference_rows, draw, ordered
from echo_ska.training import RunRecord

LOGITS, GRADIENTS, FEWER = 1e-5, 1e-4, 100

Records = Sequence[RunRecord]


def gather(folder: Path) -> Evidence[Records]:
    """A record for every length and number of processes."""
    everything = records_of(folder, experiment.NAME)
    if not everything:
        return unmeasured(folder, experiment.NAME)
    used = ordered(newest(everything))
    there = {(record.configuration["tokens"], record.configuration["processes"]) for record in used}
    missing = tuple(
        f"{length:,} tokens over {world} processes"
        for world in experiment.PROCESSES
        for length in experiment.LENGTHS
        if (length, world) not in there
    )
    return Evidence(used, tuple(used), missing, len(everything) - len(used))


def sent(records: Records) -> dict[int, set[int]]:
    """By processes, the bytes that an SKA layer sent forward, at any length."""
    found: dict[int, set[int]] = {}
    for record in records:
        sizes = found.setdefault(record.configuration["processes"], set())
        sizes |= {record.figures["layers"]["ska"][phase]["bytes"] for phase in ("forward", "backward")}
    return found


def _constant(records: Records) -> Finding:
    found = sent(records)
    shown = "; ".join(f"{world} processes: {_range(sizes)}" for world, sizes in found.items())
    return Finding(all(len(sizes) == 1 for sizes in found.values()), shown)


def _range(sizes: set[int]) -> str:
    return f"{min(sizes):,} bytes" if len(sizes) == 1 else f"{min(sizes):,} to {max(sizes):,} bytes"


def _worst(records: Records, what: str) -> float:
    return max(float(record.figures["difference"][what]) for record in records)


def _same(records: Records) -> Finding:
    logits, gradients = _worst(records, "logits"), _worst(records, "gradients")
    return Finding(logits <= LOGITS and gradients <= GRADIENTS, f"logits {logits:.1e}, gradients {gradients:.1e}")


def _fewer(records: Records) -> Finding:
    longest = max(record.configuration["tokens"] for record in records)
    ratios = [
        record.figures["attention_bytes"] / record.figures["layers"]["ska"]["forward"]["bytes"]
        for record in records
        if record.configuration["tokens"] == longest
    ]
    return Finding(min(ratios) >= FEWER, f"{min(ratios):,.0f} times fewer at {longest:,} tokens")


CLAIM: Claim[Records] = Claim(
    key="context-parallel",
    title="A long sequence over several processes",
    statement="Where a sequence is split over processes, an SKA layer passes its statistics on, a message whose size "
    "does not depend on the length, and results are those of one process.",
    source="ours",
    commands=("echo-ska reproduce context-parallel",),
    gather=gather,
    criteria=(
        Criterion(
            f"In float32, logits are within {LOGITS:g} of one process's and gradients within {GRADIENTS:g}, of the "
            "largest number of their tensor",
            _same,
        ),
        Criterion("An SKA layer sends the same number of bytes at every length, forward and backward", _constant),
        Criterion(
            f"At the longest, at least {FEWER} times fewer than gathering keys and values takes (by formula)", _fewer
        ),
    ),
    summary=lambda r: (
        f"An SKA layer sends {_constant(r).ours}, at any length; {_fewer(r).ours} than attention's keys "
        f"and values; largest difference from one process: {_same(r).ours}."
    ),
    tables=lambda r: [
        Table("Bytes that one layer sends, all processes together", byte_rows(r)),
        Table("Largest difference to one process", difference_rows(r)),
    ],
    draw=draw,
    picture="Bytes that a layer sends against the length: flat for SKA and Mamba-2, growing for attention.",
    caveats=("Processes on one CPU, by gloo: several machines, GPUs and NCCL were not at hand.",),
    criteria_after=True,
)
