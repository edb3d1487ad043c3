"""How far reads with float32 tokens are from the same in float64, outputs and gradients, by kind of keys and by ridge.

    python benchmarks/accuracy.py [TOKENS]

Prints the largest error of any output, and of any gradient, relative to the largest output or gradient of its tensor,
over four seeds, and appends one record to results/accuracy.jsonl. H = 4, r = 48, P = 64, power 2, exact causal, the
route that "auto" chooses, called past the front door, which takes float64 tokens where the ridge is small. About four
minutes on one core at 16,384 tokens.
"""

from __future__ import annotations

import sys
import time

import torch
import torch.nn.functional as F

from echo_ska.ops.arguments import check_arguments
from echo_ska.ops.chunked import chunked_attention
from echo_ska.ops.native import native_attention
from echo_ska.ops.native.build import why_unavailable
from echo_ska.training import make_record
from echo_ska.training.records import append

HEADS, RANK, HEAD_DIM, POWER = 4, 48, 64, 2
RIDGES = (5e-4, 1e-3, 5e-3, 1e-2, 0.1, 1.0)
SEEDS = 4


def make_keys(kind: str, time: int, generator: torch.Generator) -> torch.Tensor:
    """Unit-norm keys [1, T, H, r], float32."""
    keys = torch.randn(1, time, HEADS, RANK, generator=generator)
    if kind == "correlated":  # all keys near one direction
        keys = 0.1 * keys + torch.randn(1, 1, HEADS, RANK, generator=generator)
    elif kind == "repeated":  # 16 distinct keys: two thirds of the directions stay empty
        keys = keys[:, torch.randint(0, 16, (time,), generator=generator)]
    return F.normalize(keys, dim=-1)


def read(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ridge: float) -> tuple[torch.Tensor, object]:
    """One exact causal read with tokens of the inputs' dtype."""
    arguments = check_arguments(
        *(query, key, value, None),
        ridge=ridge,
        power=POWER,
        blend=None,
        gain=1.0,
        scale=1.0,
        causal=True,
        refresh_interval=None,
        initial_state=None,
        cu_seqlens=None,
    )
    return chunked_attention(arguments) if why_unavailable() else native_attention(arguments)


def relative_errors(kind: str, time: int, ridge: float, seed: int) -> tuple[float, float]:
    """The largest error of the outputs, and of the gradients of query, key and value."""
    generator = torch.Generator().manual_seed(seed)
    key = make_keys(kind, time, generator)
    query = key.roll(7, dims=1)
    value, target = (torch.randn(1, time, HEADS, HEAD_DIM, generator=generator) for _ in range(2))

    def run(dtype: torch.dtype) -> list[torch.Tensor]:
        inputs = [tensor.to(dtype).requires_grad_() for tensor in (query, key, value)]
        output, _ = read(*inputs, ridge)
        return [output.detach(), *torch.autograd.grad(output, inputs, target.to(dtype))]

    errors = [
        float((found - exact).abs().max() / exact.abs().max())
        for found, exact in zip(run(torch.float32), run(torch.float64), strict=True)
    ]
    return errors[0], max(errors[1:])


def worst(kind: str, time: int, ridge: float) -> tuple[float, float]:
    """The larger of each of the two over the seeds."""
    outputs, gradients = zip(*(relative_errors(kind, time, ridge, seed) for seed in range(SEEDS)), strict=True)
    return max(outputs), max(gradients)


def main() -> None:
    torch.set_num_threads(1)
    tokens = int(sys.argv[1]) if len(sys.argv) > 1 else 16_384
    backend = "chunked" if why_unavailable() else "native"
    started = time.perf_counter()
    print(f"Largest relative error of outputs / gradients, float32, {tokens:,} tokens, {backend}; columns: ridge")
    print(f"{'keys':>12}" + "".join(f"{ridge:>18g}" for ridge in RIDGES))
    figures: dict[str, dict[str, dict[str, float]]] = {"output": {}, "gradient": {}}
    for kind in ("random", "correlated", "repeated"):
        errors = {f"{ridge:g}": worst(kind, tokens, ridge) for ridge in RIDGES}
        figures["output"][kind] = {ridge: output for ridge, (output, _) in errors.items()}
        figures["gradient"][kind] = {ridge: gradient for ridge, (_, gradient) in errors.items()}
        print(f"{kind:>12}" + "".join(f"{a:>9.0e} /{b:>6.0e}" for a, b in errors.values()), flush=True)
    settings: dict[str, object] = {"tokens": tokens, "heads": HEADS, "rank": RANK, "head_dim": HEAD_DIM, "power": POWER}
    settings |= {"backend": backend, "seeds": SEEDS}
    record = make_record("accuracy", settings, figures, seed=0, seconds=time.perf_counter() - started)
    append(record, "results/accuracy.jsonl")


if __name__ == "__main__":
    main()
