"""One run of the benchmark, from the gate to the record."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch

from echo_ska.benchmarks.clock import matrix_peak
from echo_ska.benchmarks.decoding import judge_decoder, make_decoders, measure_context, measure_growth
from echo_ska.benchmarks.gate import Verdict, judge
from echo_ska.benchmarks.layers import judge_layer, make_layers, measure_layers
from echo_ska.benchmarks.memory import ChildError
from echo_ska.benchmarks.plan import Plan
from echo_ska.benchmarks.prefill import measure_prefill
from echo_ska.benchmarks.routes import Route, make_routes
from echo_ska.benchmarks.training import measure_length
from echo_ska.training import RunRecord, make_record
from echo_ska.training.reporter import format_seconds

NAME = "bench"
DTYPES = {"cpu": (torch.float32, torch.float64), "cuda": (torch.float32, torch.float64, torch.bfloat16)}


class _Labelled(Protocol):
    @property
    def label(self) -> str: ...


Row = TypeVar("Row", bound=_Labelled)


def run_benchmark(plan: Plan, say: Callable[[str], None] = lambda text: None) -> RunRecord:
    """Follow the plan; a record of what came out, with the plan as its configuration.

    Ctrl-C ends it early: the record then has what was measured until then, a note that says so, `stopped` (true) among
    its figures, and "own" as its plan's name.

    Args:
        plan: what to measure.
        say: called with a sentence at every step.

    Returns:
        A record whose figures are `routes` (label, dtype, backend, counted operations by length), `absent` (why other
        routes cannot run here), `gate`, `decoder_gate` and `layer_gate` (verdicts), `peak` (operations a second by
        dtype), `training`, `memory`, `prefill`, `decoding`, `growth` and `layers` (seconds of every round, and bytes),
        and `notes`.

    Raises:
        ValueError: the plan cannot be followed.
    """
    plan.check()
    threads = torch.get_num_threads()
    torch.set_num_threads(plan.threads)
    try:
        run = _Run(plan, say)
        try:
            run.measure()
        except KeyboardInterrupt:
            run.stop()
        return run.record()
    finally:
        torch.set_num_threads(threads)


class _Run:
    """The state of one run: its figures so far."""

    def __init__(self, plan: Plan, say: Callable[[str], None]) -> None:
        self.plan, self.say = plan, say
        self.started = time.perf_counter()
        self.routes, absent = make_routes(plan.routes, plan.sizes, plan.device)
        self.figures: dict[str, Any] = {
            "routes": {name: self._describe(route) for name, route in self.routes.items()},
            "absent": absent,
            "peak": {},
            "notes": [],
        }

    def measure(self) -> None:
        """Everything."""
        parts = self.plan.parts
        if {"training", "memory", "prefill"} & set(parts):
            self._gate()
            self._lengths()
        if "prefill" in parts:
            self._prefill()
        if "decoding" in parts:
            self._decoding()
        if "layers" in parts:
            self._layers()

    def stop(self) -> None:
        """Say that the rest of the plan is not measured."""
        self._note(f"stopped by Ctrl-C after {format_seconds(time.perf_counter() - self.started)}: the rest is missing")
        self.figures["stopped"] = True
        self.plan = dataclasses.replace(self.plan, name="own")

    def record(self) -> RunRecord:
        """What was measured."""
        configuration = json.loads(json.dumps(dataclasses.asdict(self.plan)))
        seconds = time.perf_counter() - self.started
        return make_record(NAME, configuration, _rounded(self.figures), seed=0, seconds=seconds)

    def _gate(self) -> None:
        judged = {}
        for name, route in self.routes.items():
            self.say(f"the gate: {route.label}")
            judged[name] = judge(route, self.plan.sizes, self.plan.device, self.plan.gate_lengths)
        self.routes = self._passed("gate", self.routes, judged)

    def _lengths(self) -> None:
        for part in ("training", "memory"):
            self.figures[part] = {name: {} for name in self.routes}
        for tokens in self.plan.lengths:
            self.say(f"forward and backward over {tokens:,} tokens")
            self._peak()
            measure_length(self.routes, tokens, self.plan, self.figures["training"], self.figures["memory"], self._note)

    def _prefill(self) -> None:
        self.say(f"reading {self.plan.prefill[0]:,} tokens in segments")
        self.figures["prefill"] = measure_prefill(self.routes, self.plan, self.figures["training"], self._note)

    def _decoding(self) -> None:
        self.say("the gate: decoding")
        decoders = make_decoders(self.routes, self.plan)
        judged = {name: judge_decoder(decoder, self.plan.sizes, self.plan.device) for name, decoder in decoders.items()}
        decoders = self._passed("decoder_gate", decoders, judged)
        decoding: dict[str, Any] = {name: {"label": decoder.label} for name, decoder in decoders.items()}
        for context in self.plan.contexts:
            self.say(f"decoding after {context:,} tokens")
            for name, found in measure_context(decoders, context, self.plan, self._note).items():
                decoding[name][str(context)] = found
        self.figures["decoding"] = decoding
        if self.plan.decode_tokens and "ska" in decoders:
            self.say(f"decoding {self.plan.decode_tokens:,} tokens in a row")
            try:
                self.figures["growth"] = measure_growth(self.plan)
            except ChildError as error:
                self._note(f"decoding {self.plan.decode_tokens:,} tokens in a row: left out, {error}")

    def _layers(self) -> None:
        self.say("the gate: whole layers")
        layers = make_layers(self.routes, self.plan)
        judged = {
            name: judge_layer(layer, self.plan.sizes, self.plan.device, self.plan.gate_lengths[0])
            for name, layer in layers.items()
        }
        layers = self._passed("layer_gate", layers, judged)
        timed: dict[str, Any] = {name: {"label": layer.label} for name, layer in layers.items()}
        for tokens in self.plan.layer_lengths:
            self.say(f"whole layers over {tokens:,} tokens")
            for name, found in measure_layers(layers, tokens, self.plan).items():
                timed[name][str(tokens)] = found
        self.figures["layers"] = timed

    def _peak(self) -> None:
        """Measured before every length, since a machine's speed changes; the best is kept."""
        for dtype in DTYPES[self.plan.device]:
            name = str(dtype).removeprefix("torch.")
            found = matrix_peak(dtype, self.plan.device)
            self.figures["peak"][name] = max(found, self.figures["peak"].get(name, 0.0))

    def _passed(self, gate: str, rows: dict[str, Row], judged: dict[str, Verdict]) -> dict[str, Row]:
        """Those that may be timed; the others are named."""
        self.figures[gate] = {
            name: {"label": rows[name].label, **dataclasses.asdict(found)} for name, found in judged.items()
        }
        for name, found in judged.items():
            if found.reason is not None:
                self._note(f"{rows[name].label} did not pass the gate and is not timed: {found.reason}")
        return {name: row for name, row in rows.items() if judged[name].passed}

    def _note(self, sentence: str) -> None:
        self.figures["notes"].append(sentence)
        self.say(sentence)

    def _describe(self, route: Route) -> dict[str, Any]:
        counted = {}
        if route.operations is not None:
            for tokens in self.plan.lengths:
                counted[str(tokens)] = dataclasses.asdict(route.operations(tokens))
        return {
            "label": route.label,
            "dtype": str(route.dtype).removeprefix("torch."),
            "backend": route.backend,
            "softmax": route.softmax,
            "operations": counted,
        }


def _rounded(value: Any) -> Any:
    """Floats to five digits, since a record is one line and no clock is better; None for what is not finite."""
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value
