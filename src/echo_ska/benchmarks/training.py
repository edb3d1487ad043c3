"""Forward, and forward with backward, at every length; and the peak memory of the latter."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch

from echo_ska.benchmarks.clock import interleaved
from echo_ska.benchmarks.memory import ChildError, available_bytes, peak_memory
from echo_ska.benchmarks.plan import Plan
from echo_ska.benchmarks.routes import Route
from echo_ska.benchmarks.sources import INPUTS, Inputs, Source

MEMORY_SHARE = 0.7
"""Of the memory that is free, how much a call may be expected to need."""

Note = Callable[[str], None]
Figures = dict[str, dict[str, Any]]


def measure_length(
    routes: Mapping[str, Route], tokens: int, plan: Plan, timed: Figures, memory: Figures, note: Note
) -> None:
    """Time the routes at one length, and measure their memory if the plan says so, into `timed` and `memory`.

    A route that the length before says to be too slow or too large for this one is left out, with a note.
    """
    expected = {name: _expected_seconds(route, tokens, timed[name]) for name, route in routes.items()}
    running = {}
    for name, route in routes.items():
        if expected[name] > plan.seconds_per_call:
            note(f"{route.label} at {tokens:,} tokens: left out, expected to take {expected[name]:,.0f} s a call")
        elif (reason := _too_large(tokens, memory[name], plan.device)) is not None:
            note(f"{route.label} at {tokens:,} tokens: left out, {reason}")
        else:
            running[name] = route
    if tokens in plan.memory_lengths and "memory" in plan.parts:
        for name, route in list(running.items()):
            try:
                timeout = 120 + 10 * expected[name]
                memory[name][str(tokens)] = peak_memory(name, tokens, plan.sizes, plan.device, plan.threads, timeout)
            except (ChildError, torch.OutOfMemoryError) as error:
                note(f"{route.label} at {tokens:,} tokens: left out, {error}")
                del running[name]
    if "training" not in plan.parts or not running:
        return
    inputs = _shared_inputs(running, tokens, plan)
    calls: dict[str, Callable[[], object]] = {}
    for name, route in running.items():
        calls[f"{name} forward"] = functools.partial(_forward, route, inputs[name])
        calls[f"{name} forward_backward"] = functools.partial(_forward_backward, route, inputs[name])
    seconds = interleaved(
        calls,
        rounds=plan.rounds,
        budget=plan.seconds_per_length,
        device=plan.device,
        expected={call: expected[call.split()[0]] for call in calls},
    )
    for name in running:
        timed[name][str(tokens)] = {kind: seconds[f"{name} {kind}"] for kind in ("forward", "forward_backward")}


def _expected_seconds(route: Route, tokens: int, timed: Mapping[str, Any]) -> float:
    """By the longest shorter length; 0 where there is none."""
    shorter = max((int(length) for length in timed if int(length) < tokens), default=None)
    if shorter is None:
        return 0.0
    return route.seconds_at(tokens, shorter, min(timed[str(shorter)]["forward_backward"]))


def _too_large(tokens: int, memory: Mapping[str, int], device: str) -> str | None:
    shorter = max((int(length) for length in memory if int(length) < tokens), default=None)
    free = available_bytes(device)
    if shorter is None or free is None:
        return None
    needed = memory[str(shorter)] * tokens / shorter
    if needed <= MEMORY_SHARE * free:
        return None
    return f"expected to need {needed / 1e9:,.1f} GB where {free / 1e9:,.1f} GB are free"


def _shared_inputs(routes: Mapping[str, Route], tokens: int, plan: Plan) -> dict[str, Inputs]:
    """Inputs by route; routes of one kind and dtype read the same."""
    made: dict[tuple[str, torch.dtype], Inputs] = {}
    for route in routes.values():
        kind = route.inputs, route.dtype
        if kind not in made:
            drawn = INPUTS[route.inputs](plan.sizes, Source(route.dtype, plan.device), tokens)
            made[kind] = {name: tensor.requires_grad_() for name, tensor in drawn.items()}
    return {name: made[route.inputs, route.dtype] for name, route in routes.items()}


@torch.no_grad()
def _forward(route: Route, inputs: Inputs) -> None:
    route.run(**inputs)


def _forward_backward(route: Route, inputs: Inputs) -> None:
    output = route.run(**inputs)
    torch.autograd.grad(output, list(inputs.values()), output.detach())
