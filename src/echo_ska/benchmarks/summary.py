"""A record of the benchmark as tables: lists of rows of strings, for the terminal and for docs/benchmarks.md alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from echo_ska.training import RunRecord

Rows = list[list[str]]


def machine(record: RunRecord) -> str:
    """Where and when, in one paragraph."""
    hardware, plan = record.hardware, record.configuration
    if plan["device"] == "cuda":
        where = str(hardware["gpu"])
    else:
        where = f"{hardware['cpu']}, {plan['threads']} of {hardware['cores']} cores"
    peaks = ", ".join(f"{name} {_rate(peak)}" for name, peak in record.figures["peak"].items())
    measured = f" Peak of a large matrix product, same run: {peaks}." if peaks else ""
    commit = "" if record.commit is None else f", commit {record.commit[:8]}{' with changes' if record.dirty else ''}"
    return (
        f"{where}; torch {record.versions['torch']}{commit}, {record.date[:10]}, {record.seconds / 60:.1f} minutes."
        f"{measured}"
    )


def picture_name(record: RunRecord) -> str:
    """The picture's file: `bench.png`, the name that docs/benchmarks.md shows, only for a full run on the CPU."""
    plan = record.configuration
    parts = [
        record.name,
        *(["gpu"] if plan["device"] == "cuda" else []),
        *([] if plan["name"] == "full" else [plan["name"]]),
    ]
    return "-".join(parts) + ".png"


def gate(record: RunRecord) -> Rows:
    """Largest errors of outputs and gradients, and who passed."""
    rows = [["route", "backend", "largest error", "allowed", "passed"]]
    for gate_name, prefix in (("gate", ""), ("decoder_gate", "decoding: "), ("layer_gate", "layer: ")):
        for name, found in record.figures.get(gate_name, {}).items():
            backend = record.figures["routes"][name]["backend"] if gate_name == "gate" else None
            error = "none" if found["error"] is None else f"{found['error']:.0e}"
            passed = "yes" if found["reason"] is None else "no"
            rows.append([prefix + found["label"], backend or "", error, f"{found['tolerance']:.0e}", passed])
    return rows


def training(record: RunRecord) -> Rows:
    """Forward and backward by length, and in brackets how many times as fast as softmax attention."""
    return _timed(record, "forward_backward")


def forward(record: RunRecord) -> Rows:
    """Forward alone, likewise."""
    return _timed(record, "forward")


def share(record: RunRecord) -> Rows:
    """Operations a second of forward and backward, as a share of the machine's matrix-product peak in that dtype."""
    figures = record.figures
    lengths = _lengths(figures["training"])
    rows = [["route", *(f"{length:,}" for length in lengths)]]
    for name, timed in figures["training"].items():
        route = figures["routes"][name]
        cells = []
        for length in map(str, lengths):
            counted, peak = route["operations"].get(length), figures["peak"].get(route["dtype"])
            if length not in timed or counted is None or peak is None:
                cells.append("")
                continue
            seconds = min(timed[length]["forward_backward"])
            cells.append(f"{100 * (counted['forward'] + counted['backward']) / seconds / peak:.0f} %")
        if any(cells):
            rows.append([route["label"], *cells])
    return rows


def memory(record: RunRecord) -> Rows:
    """Peak memory of forward and backward beyond the inputs, by length."""
    figures = record.figures
    lengths = _lengths(figures["memory"])
    rows = [["route", *(f"{length:,}" for length in lengths)]]
    for name, found in figures["memory"].items():
        cells = [_bytes(found[length]) if length in found else "" for length in map(str, lengths)]
        if any(cells):
            rows.append([figures["routes"][name]["label"], *cells])
    return rows


def prefill(record: RunRecord) -> Rows:
    """Time to read a long context, and the state at its end."""
    figures, (context, _) = record.figures, record.configuration["prefill"]
    rows = [["route", "time", "speed", "tokens a second", "state"]]
    medians = {name: statistics.median(found["seconds"]) for name, found in figures["prefill"].items()}
    softmax = min((seconds for name, seconds in medians.items() if figures["routes"][name]["softmax"]), default=None)
    for name, seconds in medians.items():
        state = figures["prefill"][name]["state_bytes"]
        rows.append(
            [
                figures["routes"][name]["label"],
                seconds_text(seconds),
                "" if softmax is None else speed_text(softmax / seconds),
                f"{context / seconds:,.0f}",
                "KV cache" if state is None else _bytes(state),
            ]
        )
    return rows


def decoding(record: RunRecord) -> Rows:
    """Time a token by tokens in the state, in brackets the speed over the faster softmax row; and the state's bytes."""
    found = record.figures["decoding"]
    contexts = sorted({int(key) for row in found.values() for key in row if key.isdigit()})
    rows = [["decoder", *(f"{context:,}" for context in contexts), "state"]]
    for row in found.values():
        cells = []
        for context in map(str, contexts):
            if context not in row:
                cells.append("")
                continue
            seconds = statistics.median(row[context]["seconds"])
            softmax = softmax_token_seconds(record, context)
            cells.append(seconds_text(seconds) + ("" if softmax is None else f" ({speed_text(softmax / seconds)})"))
        sizes = sorted({row[context]["state_bytes"] for context in map(str, contexts) if context in row})
        rows.append(
            [row["label"], *cells, " to ".join(_bytes(size) for size in dict.fromkeys((*sizes[:1], *sizes[-1:])))]
        )
    return rows


def growth(record: RunRecord) -> Rows:
    """The time of a token along the way of many in a row, and what that process has resident."""
    found = record.figures["growth"]
    stretches = {f"a token, to {int(end):,}": seconds_text(time) for end, time in found["token_seconds"].items()}
    return [
        ["tokens", *stretches, "memory it grew by", "state", "error of the read after the last"],
        [
            f"{found['tokens']:,}",
            *stretches.values(),
            _bytes(max(0, found["bytes_after"] - found["bytes_settled"])),
            _bytes(found["state_bytes"]),
            f"{found['error']:.0e}",
        ],
    ]


def layers(record: RunRecord) -> Rows:
    """Forward and backward of whole mixers, and in brackets how many times as fast as the softmax layer."""
    found = record.figures["layers"]
    lengths = sorted({int(key) for row in found.values() for key in row if key.isdigit()})
    rows = [["layer", *(f"{length:,}" for length in lengths)]]
    for row in found.values():
        cells = []
        for length in map(str, lengths):
            base = found.get("softmax", {}).get(length)
            cells.append(_against(row.get(length), base, "forward_backward"))
        rows.append([row["label"], *cells])
    return rows


TABLES: dict[str, tuple[str, Callable[[RunRecord], Rows]]] = {
    "gate": ("The gate: largest error of outputs and gradients against float64", gate),
    "training": ("Forward and backward; in brackets, how many times as fast as softmax attention", training),
    "forward": ("Forward; in brackets, how many times as fast as softmax attention", forward),
    "share": ("Forward and backward: share of the peak of a large matrix product", share),
    "memory": ("Forward and backward: peak memory beyond the inputs", memory),
    "prefill": ("Reading a context; speed: how many times as fast as softmax attention", prefill),
    "decoding": (
        "Decoding, time a token by tokens of context; in brackets, how many times as fast as the faster softmax row",
        decoding,
    ),
    "growth": ("Decoding in a row, SKA exact", growth),
    "layers": ("Whole mixers, forward and backward; in brackets, how many times as fast as the softmax layer", layers),
}
"""Title and rows by name; a table without a figure has nothing but its header, or is missing from the record."""


def rows_of(name: str, record: RunRecord) -> Rows:
    """A table's rows, or none where the record has no figure for it."""
    needed = {"forward": "training", "share": "training"}.get(name, name)
    if not record.figures.get(needed):
        return []
    rows = TABLES[name][1](record)
    return rows if len(rows) > 1 and any(cell for row in rows[1:] for cell in row[1:]) else []


def softmax_seconds(record: RunRecord, length: str, kind: str) -> float | None:
    """The median of the faster softmax route at a length, or None where none was timed."""
    routes, timed = record.figures["routes"], record.figures["training"]
    rows = (row for name, row in timed.items() if routes[name]["softmax"] and length in row)
    return min((statistics.median(row[length][kind]) for row in rows), default=None)


def softmax_token_seconds(record: RunRecord, context: str) -> float | None:
    """The median of the faster softmax decoder at a context, or None where none was timed."""
    rows = (row for name, row in record.figures["decoding"].items() if name.startswith("softmax") and context in row)
    return min((statistics.median(row[context]["seconds"]) for row in rows), default=None)


def _timed(record: RunRecord, kind: str) -> Rows:
    figures = record.figures
    lengths = _lengths(figures["training"])
    rows = [["route", *(f"{length:,}" for length in lengths)]]
    for name, timed in figures["training"].items():
        cells = []
        for length in map(str, lengths):
            softmax = softmax_seconds(record, length, kind)
            cells.append(_against(timed.get(length), None if softmax is None else {kind: [softmax]}, kind))
        rows.append([figures["routes"][name]["label"], *cells])
    return rows


def _against(timed: Mapping[str, Sequence[float]] | None, base: Mapping[str, Sequence[float]] | None, kind: str) -> str:
    if timed is None:
        return ""
    seconds = statistics.median(timed[kind])
    return seconds_text(seconds) + ("" if base is None else f" ({speed_text(statistics.median(base[kind]) / seconds)})")


def _lengths(by_route: Mapping[str, Mapping[str, Any]]) -> list[int]:
    return sorted({int(length) for row in by_route.values() for length in row})


def seconds_text(seconds: float, *, round_number: bool = False) -> str:
    """Three digits and a unit: 40.1 us, 12.3 ms, 4.56 s; a round number as it is: 10 ms."""
    size, unit = next(((s, u) for s, u in ((1.0, "s"), (1e-3, "ms")) if seconds >= 0.9995 * s), (1e-6, "us"))
    return f"{seconds / size:g} {unit}" if round_number else f"{_three(seconds / size)} {unit}"


def speed_text(ratio: float) -> str:
    """0.36x, 2.7x, 1,850x."""
    return f"{ratio:.2g}x" if ratio < 9.95 else f"{ratio:,.0f}x"


def _rate(operations: float) -> str:
    return f"{_three(operations / 1e12)} TFLOP/s" if operations >= 1e12 else f"{_three(operations / 1e9)} GFLOP/s"


def _bytes(size: float) -> str:
    for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= 0.9995 * scale:
            return f"{_three(size / scale)} {unit}"
    return f"{size:.0f} B"


def _three(number: float) -> str:
    return f"{number:,.0f}" if number >= 99.95 else f"{number:.1f}" if number >= 9.995 else f"{number:.2f}"
