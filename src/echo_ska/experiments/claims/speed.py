"""Claims 7 and 8: decoding in constant memory and time, and the wall clock of training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from echo_ska.benchmarks.summary import (
    TABLES,
    rows_of,
    seconds_text,
    softmax_seconds,
    softmax_token_seconds,
    speed_text,
)
from echo_ska.experiments import benchmark_figure
from echo_ska.experiments.claims.claim import Claim, Criterion, Evidence, Finding, Table
from echo_ska.experiments.claims.evidence import records_of
from echo_ska.experiments.trials.figures import short_bytes
from echo_ska.training import RunRecord

NAME = "bench"
DEVICES = {"cpu": "CPU", "cuda": "GPU"}
ROUTE, PYTORCH = "ska", "ska-pytorch"
SLOWER = 1.5
STEADY = 1.25
GROWN = 16e6
Machines = Mapping[str, RunRecord]
"""By device, the newest full run of `echo-ska bench`."""


def gather(folder: Path) -> Evidence[Machines]:
    """The newest full run on each device."""
    everything = records_of(folder, NAME)
    full = {r.configuration["device"]: r for r in everything if r.configuration.get("name") == "full"}
    found = {device: full[device] for device in DEVICES if device in full}
    missing = () if found else ("a full run of echo-ska bench",)
    return Evidence(found or None, tuple(found.values()), missing, len(everything) - len(found))


def _each(machines: Machines, holds: dict[str, bool], ours: dict[str, str]) -> Finding | None:
    """One finding of all devices: it holds if it does on each that was measured."""
    if not holds:
        return None
    if len(machines) == 1:
        return Finding(all(holds.values()), next(iter(ours.values())))
    return Finding(all(holds.values()), "; ".join(f"{DEVICES[device]}: {text}" for device, text in ours.items()))


def _contexts(row: Mapping[str, Any]) -> list[str]:
    return sorted((key for key in row if key.isdigit()), key=int)


def decoding_ends(record: RunRecord) -> tuple[float, float] | None:
    """Median seconds of a token at the shortest and longest context; None if decoding was not measured."""
    row = record.figures.get("decoding", {}).get(ROUTE)
    if not row:
        return None
    contexts = _contexts(row)
    return median(row[contexts[0]]["seconds"]), median(row[contexts[-1]]["seconds"])


def _time(machines: Machines) -> Finding | None:
    found = {device: ends for device, record in machines.items() if (ends := decoding_ends(record))}
    ours = {device: f"{seconds_text(a)} to {seconds_text(b)}" for device, (a, b) in found.items()}
    return _each(machines, {device: b <= SLOWER * a for device, (a, b) in found.items()}, ours)


def _bytes(machines: Machines) -> Finding | None:
    holds, ours = {}, {}
    for device, record in machines.items():
        if row := record.figures.get("decoding", {}).get(ROUTE):
            sizes = {row[context]["state_bytes"] for context in _contexts(row)}
            holds[device], ours[device] = len(sizes) == 1, " to ".join(map(short_bytes, sorted(sizes)))
    return _each(machines, holds, ours)


def _growth(machines: Machines) -> Finding | None:
    holds, ours = {}, {}
    for device, record in machines.items():
        if grown := record.figures.get("growth"):
            size = max(0, grown["bytes_after"] - grown["bytes_settled"])
            holds[device], ours[device] = size <= GROWN, f"{short_bytes(size)} over {grown['tokens']:,} tokens"
    return _each(machines, holds, ours)


def _steady(machines: Machines) -> Finding | None:
    holds, ours = {}, {}
    for device, record in machines.items():
        if grown := record.figures.get("growth"):
            times = list(grown["token_seconds"].values())
            holds[device], ours[device] = (
                times[-1] <= STEADY * times[0],
                " to ".join(seconds_text(time) for time in (times[0], times[-1])),
            )
    return _each(machines, holds, ours)


def training_speeds(record: RunRecord, route: str) -> dict[int, float]:
    """By length, how many times as fast as softmax attention forward and backward are; empty if not measured."""
    timed = record.figures.get("training", {}).get(route, {})
    found = {}
    for length in _contexts(timed):
        softmax = softmax_seconds(record, length, "forward_backward")
        if softmax is not None:
            found[int(length)] = softmax / median(timed[length]["forward_backward"])
    return found


def decoding_speeds(record: RunRecord) -> dict[int, float]:
    """The same of decoding, by tokens of context."""
    row = record.figures.get("decoding", {}).get(ROUTE, {})
    found = {}
    for context in _contexts(row):
        softmax = softmax_token_seconds(record, context)
        if softmax is not None:
            found[int(context)] = softmax / median(row[context]["seconds"])
    return found


def crossover(speeds: Mapping[int, float]) -> str:
    """From where on a route is faster than softmax attention."""
    lengths = sorted(speeds)
    slower = [length for length in lengths if speeds[length] <= 1]
    if not slower:
        return f"faster from {lengths[0]:,} tokens, the shortest measured"
    if slower == lengths:
        return f"slower up to {lengths[-1]:,} tokens"
    if slower[-1] == lengths[-1]:
        return f"faster at some lengths, slower at {lengths[-1]:,} tokens"
    return f"faster from between {slower[-1]:,} and {lengths[lengths.index(slower[-1]) + 1]:,} tokens"


def _slower(machines: Machines, route: str, lengths: slice) -> Finding | None:
    """Whether a route is slower than softmax attention at those of the lengths that were measured."""
    found = {device: speeds for device, record in machines.items() if (speeds := training_speeds(record, route))}
    judged = {device: [speeds[length] for length in sorted(speeds)[lengths]] for device, speeds in found.items()}
    ours = {
        device: ", ".join(f"{speed_text(speeds[length])} at {length:,}" for length in sorted(speeds)[lengths])
        for device, speeds in found.items()
    }
    return _each(machines, {device: max(speeds) < 1 for device, speeds in judged.items()}, ours)


def _decodes_slower(machines: Machines) -> Finding | None:
    found = {device: speeds for device, record in machines.items() if (speeds := decoding_speeds(record))}
    ours = {
        device: ", ".join(f"{speed_text(speed)} at {context:,}" for context, speed in speeds.items())
        for device, speeds in found.items()
    }
    return _each(machines, {device: max(speeds.values()) < 1 for device, speeds in found.items()}, ours)


def _decoding_summary(machines: Machines) -> str:
    said = [found.ours for found in (_time(machines), _growth(machines)) if found]
    return f"A token takes {said[0]} from the shortest context to the longest" + (
        f"; the process grows by {said[1]}." if len(said) > 1 else "."
    )


def _wall_clock_summary(machines: Machines) -> str:
    said = []
    for device, record in machines.items():
        parts = [
            f"{label} {crossover(speeds)}"
            for route, label in ((ROUTE, "with kernels SKA is"), (PYTORCH, "in PyTorch alone it is"))
            if (speeds := training_speeds(record, route))
        ]
        if speeds := decoding_speeds(record):
            parts.append(f"decoding is {crossover(speeds)}")
        said.append(f"on a {DEVICES[device]}, forward and backward, {', '.join(parts)}")
    sentence = "; ".join(said)
    return sentence[0].upper() + sentence[1:] + " (one layer's op against softmax attention)."


def _tables(machines: Machines, names: tuple[str, ...]) -> list[Table]:
    return [
        Table(f"{TABLES[name][0]} ({DEVICES[device]})", rows)
        for device, record in machines.items()
        for name in names
        if (rows := rows_of(name, record))
    ]


def _draw(machines: Machines, path: Path) -> bool:
    return benchmark_figure.draw(list(machines.values())[-1], path)


CAVEATS = (
    "A GPU, unless the hardware below names one.",
    "Batches larger than 1, other widths, compiled code, whole models (docs/benchmarks.md).",
)

DECODING: Claim[Machines] = Claim(
    key="7",
    title="Constant memory and time a token",
    statement="Decoding takes the same memory and the same time a token, however long the context is.",
    source="the paper (arXiv 2605.06997)",
    commands=("make bench",),
    gather=gather,
    criteria=(
        Criterion(
            f"A token at the longest context takes at most {SLOWER:g} times as long as at the shortest",
            _time,
            "constant",
        ),
        Criterion("The state has the same bytes at every context", _bytes, "constant"),
        Criterion(f"Decoding in a row, the process grows by at most {short_bytes(GROWN)}", _growth, "constant"),
        Criterion(
            f"Decoding in a row, the last stretch's tokens take at most {STEADY:g} times as long as the first's",
            _steady,
            "constant",
        ),
    ),
    summary=_decoding_summary,
    tables=lambda m: _tables(m, ("decoding", "growth")),
    draw=_draw,
    picture="Time against length: training on the left, decoding on the right, SKA's rows beside the controls'.",
    caveats=CAVEATS,
    criteria_after=True,
)

WALL_CLOCK: Claim[Machines] = Claim(
    key="8",
    title="The talk's caveat: no wall-clock win yet",
    statement="SKA is not faster than softmax attention on the clock, since its factorisation is a Cholesky in "
    "float32 in PyTorch.",
    source="the talk about the paper",
    commands=("make bench",),
    gather=gather,
    criteria=(
        Criterion(
            "In PyTorch alone, forward and backward are slower than softmax attention at the shortest length",
            lambda m: _slower(m, PYTORCH, slice(1)),
            "slower",
        ),
        Criterion(
            "In PyTorch alone they are slower at every length", lambda m: _slower(m, PYTORCH, slice(None)), "slower"
        ),
        Criterion("With kernels they are slower at every length", lambda m: _slower(m, ROUTE, slice(None)), "slower"),
        Criterion("Decoding is slower at every context", _decodes_slower, "slower"),
    ),
    summary=_wall_clock_summary,
    tables=lambda m: _tables(m, ("training", "prefill", "layers")),
    caveats=CAVEATS,
    criteria_after=True,
)
