"""How far decoding drifts from the definition, by precision, by how often the inverse is computed anew, and by tokens.

    python benchmarks/decoding_accuracy.py [TOKENS [VARIANT ...]]

Twelve heads decode TOKENS tokens side by side: three kinds of unit-norm keys (random; correlated, all near one
direction; repeated, 16 distinct ones, so that 32 of 48 directions stay empty) times four ridges. r = 48, P = 64,
power 2, half blended. At 1,000, 10,000, ... tokens the last outputs are compared with the definition: a float64
Cholesky factorisation a token, from sums that were added up apart. Half of the queries are stored keys, the others
random.

Prints the largest error of each head relative to its largest output ("nan": a factorisation failed) and the time of a
step, the least of all stretches of 64, and appends one record a variant to results/decoding-accuracy.jsonl. About four
minutes a variant for 1,000,000 tokens on an idle core.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from echo_ska.algebra import RidgeFactor, SufficientStatistics
from echo_ska.ops import RecurrentState, spectral_koopman_attention
from echo_ska.ops.decoding import DecodingState, advance
from echo_ska.training import make_record
from echo_ska.training.records import append

KINDS = ("random", "correlated", "repeated")
RIDGES = (0.001, 0.01, 0.25, 1.0)
HEADS, RANK, HEAD_DIM, POWER = len(KINDS) * len(RIDGES), 48, 64, 2
BLOCK = 64
"""Tokens drawn, and checked, at a time; the shortest period of a new inverse."""


@dataclass(frozen=True)
class Variant:
    """How to decode.

    Attributes:
        dtype: of sums and inverse while decoding.
        every: tokens after which the inverse is computed anew, a multiple of BLOCK; 0 = never.
        sums: what it is computed from: "own", the state's sums; "float64", sums kept beside it; "compensated", the
            state's sums, which carry their rounding errors along (Kahan summation).
    """

    dtype: torch.dtype
    every: int
    sums: str = "own"


VARIANTS = {
    "float64": Variant(torch.float64, 0),
    "float64, every 1,024": Variant(torch.float64, 1024),
    "float64, every 128": Variant(torch.float64, 128),
    "float32": Variant(torch.float32, 0),
    "float32, every 64": Variant(torch.float32, 64),
    "float32, every 64 from float64 sums": Variant(torch.float32, 64, "float64"),
    "float32, every 64 from compensated sums": Variant(torch.float32, 64, "compensated"),
}


class Compensation:
    """Kahan's sum of the products that go into `moments`."""

    def __init__(self, moments: Tensor) -> None:
        self.total, self.rest = moments.clone(), torch.zeros_like(moments)

    def add(self, product: Tensor) -> None:
        """Add one product, the rounding error of all before it taken off."""
        product = product - self.rest
        total = self.total + product
        self.rest = (total - self.total) - product
        self.total = total

    def exact(self) -> Tensor:
        """The sum in float64."""
        return self.total.double() - self.rest.double()


def blocks(seed: int) -> Iterator[dict[str, Tensor]]:
    """Tokens without end, [1, BLOCK, H, ...] each; heads are ordered by kind, then by ridge."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    direction, distinct = normal(RANK), normal(16, RANK)
    values_of_keys = normal(RANK, HEAD_DIM)
    while True:
        picked = distinct[torch.randint(0, 16, (BLOCK,), generator=generator)]
        key = torch.stack([normal(BLOCK, RANK), 0.1 * normal(BLOCK, RANK) + direction, picked], dim=1)
        key = F.normalize(key, dim=-1)  # [BLOCK, kinds, r]
        value = key @ values_of_keys + normal(BLOCK, len(KINDS), HEAD_DIM)
        query = torch.where(torch.arange(BLOCK)[:, None, None] % 2 == 0, key.roll(7, dims=0), normal(*key.shape))
        tokens = {"query": F.normalize(query, dim=-1), "key": key, "value": value}
        yield {name: tensor.repeat_interleave(len(RIDGES), dim=1).unsqueeze(0) for name, tensor in tokens.items()}


def compute_anew(state: DecodingState, sums: Tensor, ridge: Tensor) -> None:
    """The inverse from the moments `sums`, and the state's sums rounded from them; nan where a factorisation fails."""
    factor = RidgeFactor.of(sums[:, :, :RANK], ridge.to(sums.dtype)[:, None, None])
    inverse = factor.solve(torch.eye(RANK, dtype=sums.dtype))
    state.inverse.copy_(torch.where((factor.info == 0)[..., None, None], inverse, math.nan))
    state.moments.copy_(sums)


@torch.no_grad()
def measure(variant: Variant, tokens: int) -> tuple[dict[str, list[float]], list[int], float]:
    """Errors by head ("kind, ridge r") at each of the returned numbers of tokens, and the microseconds of a step."""
    ridge = torch.tensor(RIDGES, dtype=torch.float64).repeat(len(KINDS))
    empty = SufficientStatistics.empty(1, HEADS, RANK, HEAD_DIM, dtype=variant.dtype)
    state = DecodingState.of(RecurrentState(empty, None, empty.count), ridge)
    compensation = Compensation(state.moments) if variant.sums == "compensated" else None
    exact = SufficientStatistics.empty(1, HEADS, RANK, HEAD_DIM)
    blend = torch.full((1, HEADS), 0.5)
    errors: dict[str, list[float]] = {f"{kind}, ridge {ridge:g}": [] for kind in KINDS for ridge in RIDGES}
    checks, step_times = [], []
    done, next_check = 0, 1000
    for block in blocks(seed=0):
        started = time.perf_counter()
        outputs = []
        for t in range(BLOCK):
            query, key, value = (block[name][:, t].to(variant.dtype) for name in ("query", "key", "value"))
            previous = state.previous_key.clone() if compensation is not None else None
            outputs.append(advance(state, query, key, value, power=POWER, blend=blend))
            if compensation is not None:
                column = torch.cat([key, previous, value], dim=-1)
                compensation.add(column.unsqueeze(-1) * key.unsqueeze(-2))
                state.moments.copy_(compensation.total)
        step_times.append((time.perf_counter() - started) / BLOCK)
        before, exact = exact, exact + SufficientStatistics.from_tokens(block["key"], block["value"])
        done += BLOCK
        if done >= next_check or done >= tokens:
            inputs = {name: tensor.double() for name, tensor in block.items()}
            expected, _ = spectral_koopman_attention(
                **inputs,
                ridge=ridge,
                power=POWER,
                blend=blend[:, None].expand(1, BLOCK, HEADS).double(),
                initial_state=RecurrentState(before, None, before.count),
                backend="recurrent",
            )
            found = torch.stack(outputs, dim=1).double()
            error = (found - expected).abs().amax(dim=(0, 1, 3)) / expected.abs().amax(dim=(0, 1, 3))
            for name, number in zip(errors, error.tolist(), strict=True):
                errors[name].append(number)
            checks.append(done)
            next_check *= 10
        if done >= tokens:
            return errors, checks, 1e6 * min(step_times)
        if variant.every and done % variant.every == 0:
            sums = state.moments
            if compensation is not None:
                sums = compensation.exact()
            elif variant.sums == "float64":
                sums = torch.cat([exact.gram, exact.lag_moment.mT, exact.value_moment], dim=-2)
            compute_anew(state, sums, ridge)
    raise AssertionError("blocks do not end")


def main() -> None:
    torch.set_num_threads(1)
    tokens = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    for name in sys.argv[2:] or VARIANTS:
        started = time.perf_counter()
        print(f"{name}: largest error by kind and ridge, after so many tokens", flush=True)
        errors, checks, microseconds = measure(VARIANTS[name], tokens)
        print(f"{'':>24}" + "".join(f"{check:>12,}" for check in checks))
        for head, curve in errors.items():
            print(f"{head:>24}" + "".join(f"{error:>12.1e}" for error in curve))
        print(f"  {microseconds:.0f} us a step of {HEADS} heads", flush=True)
        settings = {"variant": name, "tokens": tokens, "rank": RANK, "head_dim": HEAD_DIM, "power": POWER}
        figures = {"tokens": checks, "errors": errors, "microseconds": microseconds}
        record = make_record("decoding-accuracy", settings, figures, seed=0, seconds=time.perf_counter() - started)
        append(record, "results/decoding-accuracy.jsonl")


if __name__ == "__main__":
    main()
