"""Reading a long context: segment by segment through the state, or for softmax attention in one causal call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from echo_ska.algebra import TensorRecord
from echo_ska.benchmarks.clock import interleaved
from echo_ska.benchmarks.plan import Plan
from echo_ska.benchmarks.routes import Route
from echo_ska.benchmarks.sources import INPUTS, Inputs, Source, tokens_of

PREFILL_ROUNDS = 3


def measure_prefill(
    routes: Mapping[str, Route], plan: Plan, timed: Mapping[str, Mapping[str, Any]], note: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Seconds to read the plan's context, forward only, and the bytes of the state at its end.

    Softmax attention reads it in one causal call, which is its fastest way (in segments it needs a mask). Copying keys
    and values into a cache is not counted.

    Args:
        routes: by name; those that keep no state and are not softmax attention are left out.
        plan: its `prefill` is (context, segment).
        timed: seconds by route and length, which say whether a context can be read in the plan's time.
        note: told what is left out.
    """
    context, segment = plan.prefill
    calls: dict[str, Callable[[], object]] = {}
    states: dict[str, Any] = {}
    expected: dict[str, float] = {}
    for name, route in routes.items():
        if route.segment is None and not route.softmax:
            continue
        measured = [int(length) for length in timed.get(name, {}) if int(length) <= context]
        if measured:
            forward = min(timed[name][str(max(measured))]["forward"])
            expected[name] = route.seconds_at(context, max(measured), forward)
        if expected.get(name, 0.0) > plan.seconds_per_call:
            note(f"{route.label}, {context:,} tokens to read: left out, expected to take {expected[name]:,.0f} s")
            continue
        inputs = INPUTS[route.inputs](plan.sizes, Source(route.dtype, plan.device), context)
        if route.softmax:
            calls[name] = functools.partial(_at_once, route, inputs)
        else:
            calls[name] = functools.partial(_by_segments, route, inputs, segment, states, name)
    seconds = interleaved(
        calls, rounds=PREFILL_ROUNDS, budget=plan.seconds_per_length, device=plan.device, expected=expected
    )
    return {name: {"seconds": seconds[name], "state_bytes": _bytes(states.get(name))} for name in calls}


@torch.no_grad()
def _at_once(route: Route, inputs: Inputs) -> None:
    route.run(**inputs)


@torch.no_grad()
def _by_segments(route: Route, inputs: Inputs, segment: int, states: dict[str, Any], name: str) -> None:
    assert route.segment is not None
    context = next(tensor.shape[1] for tensor in inputs.values() if tensor.dim() > 1)
    state = None
    for begin in range(0, context, segment):
        _, state = route.segment(tokens_of(inputs, begin, min(begin + segment, context)), state)
    states[name] = state


def _bytes(state: Any) -> int | None:
    if isinstance(state, TensorRecord):
        return state.nbytes
    return state.numel() * state.element_size() if isinstance(state, Tensor) else None
