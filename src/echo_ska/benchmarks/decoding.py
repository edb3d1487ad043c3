"""Seconds a decoded token against the context that is in the state, and whether memory grows.

    python -m echo_ska.benchmarks.decoding '{"tokens": 100000, ...}'

decodes so many tokens in a process of its own and prints what came out. The parent is `measure_growth`.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from echo_ska.benchmarks.clock import interleaved, wait
from echo_ska.benchmarks.decoders import DECODERS, Decoder, random_state, state_bytes
from echo_ska.benchmarks.gate import Verdict, largest_error, verdict
from echo_ska.benchmarks.memory import ask_child, available_bytes, resident_bytes
from echo_ska.benchmarks.plan import Plan, Sizes
from echo_ska.benchmarks.routes import ROUTES, TOLERANCES
from echo_ska.benchmarks.sources import INPUTS, Inputs, Source, tokens_of
from echo_ska.benchmarks.training import MEMORY_SHARE
from echo_ska.ops import spectral_koopman_attention
from echo_ska.ops.decoding import DecodingState, decode_step

GATE_CONTEXT, GATE_TOKENS = 50, 30
TOKENS = 64
"""Random tokens that are decoded over and over."""

SETTLED = 1000
"""Decoded tokens after which a process is no longer expected to grow; also the tokens of a block that is timed."""


def make_decoders(routes: Mapping[str, Any], plan: Plan) -> dict[str, Decoder]:
    """The decoders of these routes."""
    made = {name: make(plan.sizes, plan.device) for name, make in DECODERS.items()}
    return {name: decoder for name, decoder in made.items() if decoder.route in routes}


@torch.no_grad()
def judge_decoder(decoder: Decoder, sizes: Sizes, device: str) -> Verdict:
    """Decode a few tokens after a short context, and compare with the definition of the decoder's route."""
    tolerance = TOLERANCES[decoder.dtype]

    def compare() -> dict[str, tuple[float, float]]:
        route = ROUTES[decoder.route](sizes, device)
        inputs = INPUTS[route.inputs](sizes, Source(decoder.dtype, "cpu"), GATE_CONTEXT + GATE_TOKENS)
        expected = route.definition(**{name: tensor.double() for name, tensor in inputs.items()})
        inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
        state = decoder.start(tokens_of(inputs, 0, GATE_CONTEXT))
        outputs = [decoder.step(state, _token(inputs, GATE_CONTEXT + t)) for t in range(GATE_TOKENS)]
        error = largest_error([torch.stack(outputs, 1).double().cpu()], [expected[:, GATE_CONTEXT:]])
        return {f"after {GATE_CONTEXT} tokens": (error, tolerance)}

    return verdict(tolerance, compare)


@torch.no_grad()
def measure_context(
    decoders: Mapping[str, Decoder], context: int, plan: Plan, note: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Seconds a token of each decoder with `context` tokens in its state, by blocks of tokens, and the state's bytes.

    The contexts are random and repeat themselves after `decoders.FABRICATED` tokens. A cache that would not fit into
    the free memory is left out, with a note.
    """
    calls: dict[str, Callable[[], object]] = {}
    sizes: dict[str, int] = {}
    for name, decoder in decoders.items():
        free = available_bytes(plan.device)
        needed = 0 if decoder.cache_bytes is None else decoder.cache_bytes(context)
        if free is not None and needed > MEMORY_SHARE * free:
            note(
                f"{decoder.label}, {context:,} tokens of context: left out, its cache takes {needed / 1e9:,.1f} GB "
                f"where {free / 1e9:,.1f} GB are free"
            )
            continue
        source = Source(decoder.dtype, plan.device)
        state = decoder.fabricate(context, source)
        sizes[name] = state_bytes(state)
        inputs = INPUTS[ROUTES[decoder.route](plan.sizes, plan.device).inputs](plan.sizes, source, TOKENS)
        calls[name] = functools.partial(_next_token, decoder, state, inputs, iter(_forever(TOKENS)))
    seconds = interleaved(calls, rounds=plan.rounds, budget=plan.seconds_per_length, device=plan.device)
    calls.clear()
    gc.collect()  # the caches, before the next context's are made
    return {name: {"seconds": samples, "state_bytes": sizes[name]} for name, samples in seconds.items()}


def measure_growth(plan: Plan) -> dict[str, Any]:
    """What `grow` found in a fresh process.

    Raises:
        ChildError: the process ended without a figure.
    """
    request = {
        "tokens": plan.decode_tokens,
        "threads": plan.threads,
        "device": plan.device,
        "sizes": dataclasses.asdict(plan.sizes),
    }
    found: dict[str, Any] = ask_child("echo_ska.benchmarks.decoding", request, 120 + plan.decode_tokens * 0.02)
    return found


@torch.no_grad()
def grow(tokens: int, sizes: Sizes, device: str) -> dict[str, Any]:
    """Decode so many tokens from an empty state with SKA's exact read.

    Returns:
        `tokens`; `seconds`; `token_seconds`, those of a token in the median block of each stretch, by its last token
        (a stretch ends with ten times as many tokens as the one before, blocks have `SETTLED` tokens, or a tenth of
        all); `bytes_settled` and `bytes_after`, resident after a block and after all; `state_bytes`; `error`, of the
        read after the last token, against a factorisation of the sums it has reached, over that read's largest entry.
    """
    function: dict[str, Any] = {"ridge": sizes.ridge, "power": sizes.power}
    source = Source(torch.float32, device)
    state = DecodingState.of(random_state(1, sizes, source, None), sizes.ridge)
    inputs = INPUTS["regression"](sizes, source, 4096)
    block = max(1, min(SETTLED, tokens // 10))
    bytes_settled = _resident(device)
    marks = [_mark(device)]
    for t in range(tokens):
        decode_step(state, **_token(inputs, t % 4096), **function)
        if (t + 1) % block == 0:
            marks.append(_mark(device))
            if t + 1 == block:
                bytes_settled = _resident(device)
    seconds, bytes_after = _mark(device) - marks[0], _resident(device)
    last = {name: tensor.double() for name, tensor in tokens_of(inputs, 0, 1).items()}
    reached = state.to_recurrent()
    exact = spectral_koopman_attention(**last, initial_state=reached, backend="recurrent", **function)[0].squeeze(1)
    error = largest_error([decode_step(state, **_token(last, 0), **function)], [exact])
    return {
        "tokens": tokens,
        "seconds": seconds,
        "token_seconds": _by_stretch([later - earlier for earlier, later in itertools.pairwise(marks)], block),
        "bytes_settled": bytes_settled,
        "bytes_after": bytes_after,
        "state_bytes": state.nbytes,
        "error": error,
    }


def _by_stretch(blocks: list[float], tokens: int) -> dict[str, float]:
    """Seconds a token of the median block among those that end by 10, 100, .. blocks, after the stretch before."""
    ends = [10**power for power in range(1, len(str(len(blocks)))) if 10**power < len(blocks)] + [len(blocks)]
    return {
        str(end * tokens): statistics.median(blocks[begin:end]) / tokens
        for begin, end in itertools.pairwise([1 if len(blocks) > 1 else 0, *ends])  # the first block warms up
    }


def _mark(device: str) -> float:
    wait(device)
    return time.perf_counter()


def _resident(device: str) -> int:
    return torch.cuda.memory_allocated() if device == "cuda" else resident_bytes()


def _token(inputs: Inputs, place: int) -> Inputs:
    """Of [1, T, H, width] the token at `place`, [1, H, width]."""
    return {name: tensor[:, place] if tensor.dim() > 1 else tensor for name, tensor in inputs.items()}


def _forever(count: int) -> Any:
    while True:
        yield from range(count)


def _next_token(decoder: Decoder, state: Any, inputs: Inputs, places: Any) -> Tensor:
    return decoder.step(state, _token(inputs, next(places)))


def main(request: str) -> None:
    """Decode as the JSON `request` says and print what came out."""
    asked = json.loads(request)
    torch.set_num_threads(asked["threads"])
    print(json.dumps(grow(asked["tokens"], Sizes(**asked["sizes"]), asked["device"])))


if __name__ == "__main__":
    main(sys.argv[1])
