"""The table of decoders: one token at a time from a state, or over a key-value cache."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from echo_ska.algebra import SufficientStatistics, TensorRecord
from echo_ska.benchmarks.plan import Sizes
from echo_ska.benchmarks.sources import INPUTS, Inputs, Source
from echo_ska.nn.mamba2 import state_space_scan
from echo_ska.ops import RecurrentState, spectral_koopman_attention
from echo_ska.ops.decoding import DecodingState, decode_step

ROOM = 256
"""Tokens that a key-value cache has room for behind its context; the one after the last is written over the first."""

FABRICATED = 8192
"""Tokens of the random context that is repeated up to the length asked for."""


@dataclass(frozen=True)
class Decoder:
    """One way to decode.

    Attributes:
        label: how tables and pictures call it.
        route: the row of `routes.ROUTES` that computes the same for all tokens at once; the gate compares with its
            definition.
        start: the inputs of a context [1, T, H, width] to a state.
        fabricate: a context's length, and a source, to the state after so many random tokens.
        step: (state, inputs of one token [1, H, width]) to its output [1, H, P]; changes the state.
        cache_bytes: of a key-value cache after so many tokens; None where the state does not grow.
        dtype: of the tokens.
    """

    label: str
    route: str
    start: Callable[[Inputs], Any]
    fabricate: Callable[[int, Source], Any]
    step: Callable[[Any, Inputs], Tensor]
    cache_bytes: Callable[[int], int] | None = None
    dtype: torch.dtype = torch.float32


@dataclass
class Cache:
    """Keys and values of [1, H] rows with room for more, and how many tokens there are."""

    key: Tensor
    value: Tensor
    context: int
    decoded: int = 0

    def next_place(self) -> int:
        """Where the next token goes."""
        place = self.context + self.decoded % ROOM
        self.decoded += 1
        return place


@dataclass
class Held:
    """A state that its step replaces."""

    state: Any


Maker = Callable[[Sizes, str], Decoder]


def _ska(label: str, route: str, sizes: Sizes, **settings: Any) -> Decoder:
    """`decode_step`: the inverse is carried along, nothing is factored."""
    function: dict[str, Any] = {"ridge": sizes.ridge, "power": sizes.power} | settings
    interval = function.get("refresh_interval")

    def ready(state: RecurrentState) -> DecodingState:
        return DecodingState.of(state, sizes.ridge, power=function["power"], refresh_interval=interval)

    def start(context: Inputs) -> DecodingState:
        state = spectral_koopman_attention(**context, output_final_state=True, **function)[1]
        assert state is not None
        return ready(state)

    def step(state: DecodingState, token: Inputs) -> Tensor:
        return decode_step(state, **token, **function)

    def fabricate(tokens: int, source: Source) -> DecodingState:
        return ready(random_state(tokens, sizes, source, interval))

    return Decoder(label, route, start, fabricate, step)


def _ska_front_door(sizes: Sizes, device: str) -> Decoder:
    """The op itself on one token: the definition, with a factorisation a token."""

    def op(tokens: Inputs, state: RecurrentState | None) -> tuple[Tensor, RecurrentState | None]:
        return spectral_koopman_attention(
            **tokens,
            ridge=sizes.ridge,
            power=sizes.power,
            initial_state=state,
            output_final_state=True,
            backend="chunked" if state is None else "recurrent",
        )

    def step(held: Held, token: Inputs) -> Tensor:
        output, held.state = op({name: tensor.unsqueeze(1) for name, tensor in token.items()}, held.state)
        return output.squeeze(1)

    return Decoder(
        "SKA, factored each token",
        "ska",
        lambda context: Held(op(context, None)[1]),
        lambda tokens, source: Held(random_state(tokens, sizes, source, None)),
        step,
    )


def _softmax(label: str, sizes: Sizes, read: Callable[[Cache, int, Tensor], Tensor], *, columns: bool) -> Decoder:
    """Softmax attention over a cache; `columns` keeps keys as [1, H, D, L], for one product, else as [1, H, L, D]."""

    def start(context: Inputs) -> Cache:
        tokens = context["key"].shape[1]
        key, value = (F.pad(context[name].transpose(1, 2), (0, 0, 0, ROOM)) for name in ("key", "value"))
        return Cache(key.mT.contiguous() if columns else key, value, tokens)

    def fabricate(tokens: int, source: Source) -> Cache:
        drawn = INPUTS["softmax"](sizes, source, min(tokens, FABRICATED))
        value = source.empty(1, sizes.heads, tokens + ROOM, sizes.head_dim)
        key = source.empty(1, sizes.heads, sizes.head_dim, tokens + ROOM) if columns else torch.empty_like(value)
        rows = key.mT if columns else key
        block = drawn["key"].shape[1]
        for begin in range(0, tokens + ROOM, block):
            for room, name in ((rows, "key"), (value, "value")):
                part = room[:, :, begin : begin + block]
                part.copy_(drawn[name][:, : part.shape[2]].transpose(1, 2))
        return Cache(key, value, tokens)

    def step(cache: Cache, token: Inputs) -> Tensor:
        place = cache.next_place()
        if columns:
            cache.key[..., place] = token["key"]
        else:
            cache.key[:, :, place] = token["key"]
        cache.value[:, :, place] = token["value"]
        return read(cache, place + 1, token["query"].unsqueeze(2)).squeeze(2)

    def cache_bytes(tokens: int) -> int:
        return 2 * sizes.heads * sizes.head_dim * 4 * tokens

    return Decoder(label, "softmax", start, fabricate, step, cache_bytes)


def _by_products(cache: Cache, length: int, query: Tensor) -> Tensor:
    scores = query @ cache.key[..., :length] * query.shape[-1] ** -0.5  # [1, H, 1, L]
    return scores.softmax(-1) @ cache.value[:, :, :length]


def _by_torch(cache: Cache, length: int, query: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, cache.key[:, :, :length], cache.value[:, :, :length])


def _linear(sizes: Sizes, device: str) -> Decoder:
    def step(state: Tensor, token: Inputs) -> Tensor:
        query, key, value = (token[name].squeeze(0).unsqueeze(1) for name in ("query", "key", "value"))  # [H, 1, width]
        state.baddbmm_(key.mT, value)
        return torch.bmm(query, state).transpose(0, 1)

    return Decoder(
        "linear attention",
        "linear",
        lambda context: torch.einsum("bthr,bthp->hrp", context["key"], context["value"]),
        lambda tokens, source: tokens**0.5 * source.normal(sizes.heads, sizes.rank, sizes.head_dim),
        step,
    )


def _mamba2(sizes: Sizes, device: str) -> Decoder:
    def step(held: Held, token: Inputs) -> Tensor:
        tokens = {name: tensor if name == "A" else tensor.unsqueeze(1) for name, tensor in token.items()}
        output, held.state = state_space_scan(**tokens, state=held.state, output_state=True)
        return output.squeeze(1)

    return Decoder(
        "Mamba-2's scan",
        "mamba2",
        lambda context: Held(state_space_scan(**context, output_state=True)[1]),
        lambda tokens, source: Held(source.normal(1, sizes.heads, sizes.head_dim, sizes.state_size)),
        step,
    )


DECODERS: dict[str, Maker] = {
    "ska": lambda sizes, device: _ska(f"SKA, exact, power {sizes.power}", "ska", sizes),
    "ska-power-0": lambda sizes, device: _ska("SKA, exact, power 0", "ska-power-0", sizes, power=0),
    "ska-chunk-causal": lambda sizes, device: _ska(
        f"SKA, chunk-causal {sizes.refresh_interval}",
        "ska-chunk-causal",
        sizes,
        refresh_interval=sizes.refresh_interval,
    ),
    "ska-front-door": _ska_front_door,
    "softmax": lambda sizes, device: _softmax("softmax, SDPA", sizes, _by_torch, columns=False),
    "softmax-products": lambda sizes, device: _softmax("softmax, two products", sizes, _by_products, columns=True),
    "linear": _linear,
    "mamba2": _mamba2,
}
"""By name; a new one is a new row."""


def random_state(tokens: int, sizes: Sizes, source: Source, refresh_interval: int | None) -> RecurrentState:
    """The op's state after a random context: up to `FABRICATED` random tokens, repeated.

    Raises:
        ValueError: `refresh_interval` does not divide `tokens`.
    """
    if refresh_interval is not None and tokens % refresh_interval:
        raise ValueError(f"a context of {tokens} tokens is no multiple of the refresh_interval {refresh_interval}")
    statistics = _random_statistics(tokens, sizes, source.dtype, source.device)
    return RecurrentState(statistics, None if refresh_interval is None else statistics, statistics.count)


@functools.lru_cache(maxsize=1)  # several decoders start from the same
def _random_statistics(tokens: int, sizes: Sizes, dtype: torch.dtype, device: torch.device) -> SufficientStatistics:
    inputs = INPUTS["regression"](sizes, Source(dtype, device), min(tokens, FABRICATED))
    whole = SufficientStatistics.from_tokens(inputs["key"], inputs["value"])
    begun = tokens % FABRICATED or FABRICATED
    statistics = SufficientStatistics.from_tokens(inputs["key"][:, :begun], inputs["value"][:, :begun])
    for _ in range((tokens - 1) // FABRICATED):
        statistics = whole + statistics
    return statistics


def state_bytes(state: Any) -> int:
    """Bytes that a state keeps between two tokens; of a cache those of its tokens, without the room behind them."""
    if isinstance(state, TensorRecord):
        return state.nbytes
    if isinstance(state, Cache):
        a_token = [
            tensor.element_size() * tensor.numel() // (state.context + ROOM) for tensor in (state.key, state.value)
        ]
        return sum(a_token) * state.context
    if isinstance(state, Held):
        return state_bytes(state.state)
    assert isinstance(state, Tensor)
    return state.numel() * state.element_size()
