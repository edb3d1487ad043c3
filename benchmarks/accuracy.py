"""How far the chunked route with float32 inputs is from float64, by kind of keys and by ridge.

    python benchmarks/accuracy.py [TOKENS]

Prints the largest error of any output, relative to the largest output, and appends one record to
results/accuracy.jsonl. H = 4, r = 48, P = 64, power 2, exact causal. About two minutes on one core at 4,096 tokens.
"""

from __future__ import annotations

import sys
import time

import torch
import torch.nn.functional as F

from echo_ska.ops import spectral_koopman_attention
from echo_ska.training import make_record
from echo_ska.training.records import append

HEADS, RANK, HEAD_DIM, POWER = 4, 48, 64, 2
RIDGES = (1e-4, 1e-3, 1e-2, 0.1, 0.25, 1.0)


def make_keys(kind: str, time: int, generator: torch.Generator) -> torch.Tensor:
    """Unit-norm keys [1, T, H, r], float32."""
    keys = torch.randn(1, time, HEADS, RANK, generator=generator)
    if kind == "correlated":  # all keys near one direction
        keys = 0.1 * keys + torch.randn(1, 1, HEADS, RANK, generator=generator)
    elif kind == "repeated":  # 16 distinct keys: two thirds of the directions stay empty
        keys = keys[:, torch.randint(0, 16, (time,), generator=generator)]
    return F.normalize(keys, dim=-1)


def relative_error(kind: str, time: int, ridge: float) -> float:
    """The largest error over the largest output, one seed."""
    generator = torch.Generator().manual_seed(0)
    key = make_keys(kind, time, generator)
    query = key.roll(7, dims=1)
    value = torch.randn(1, time, HEADS, HEAD_DIM, generator=generator)

    def run(dtype: torch.dtype) -> torch.Tensor:
        inputs = (tensor.to(dtype) for tensor in (query, key, value))
        return spectral_koopman_attention(*inputs, ridge=ridge, power=POWER, backend="chunked")[0].double()

    exact = run(torch.float64)
    return float((run(torch.float32) - exact).abs().max() / exact.abs().max())


def main() -> None:
    torch.set_num_threads(1)
    tokens = int(sys.argv[1]) if len(sys.argv) > 1 else 4096
    started = time.perf_counter()
    print(f"Largest relative error, float32 inputs, {tokens:,} tokens; columns: ridge")
    print(f"{'keys':>12}" + "".join(f"{ridge:>10g}" for ridge in RIDGES))
    errors: dict[str, dict[str, float]] = {}
    for kind in ("random", "correlated", "repeated"):
        errors[kind] = {f"{ridge:g}": relative_error(kind, tokens, ridge) for ridge in RIDGES}
        print(f"{kind:>12}" + "".join(f"{error:>10.1e}" for error in errors[kind].values()), flush=True)
    settings = {"tokens": tokens, "heads": HEADS, "rank": RANK, "head_dim": HEAD_DIM, "power": POWER}
    record = make_record("accuracy", settings, errors, seed=0, seconds=time.perf_counter() - started)
    append(record, "results/accuracy.jsonl")


if __name__ == "__main__":
    main()
