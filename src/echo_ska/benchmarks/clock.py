"""Seconds: interleaved, in samples long enough for the clock, and the machine's peak by the same clock."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

import torch

SAMPLE_SECONDS = 0.05
WARM_UP_BELOW = 5.0
PEAK_SIZES = {"cpu": 2048, "cuda": 8192}
PEAK_ROUNDS = 5


def seconds_of(call: Callable[[], object], device: str, repeats: int = 1) -> float:
    """Wall seconds of a call, the device's work included: the mean of `repeats` in a row."""
    wait(device)
    begun = time.perf_counter()
    for _ in range(repeats):
        call()
    wait(device)
    return (time.perf_counter() - begun) / repeats


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    budget: float,
    device: str,
    expected: Mapping[str, float] | None = None,
) -> dict[str, list[float]]:
    """Seconds of each call in each round. In a round every call has its turn, so that what disturbs one disturbs all.

    Args:
        calls: by name. Each is called once before the first round, unless it is expected to take long.
        rounds: at most; each begins with another call.
        budget: no further round begins after so many seconds.
        device: "cpu" or "cuda".
        expected: predicted seconds; a name that is missing is thought to be quick.

    Returns:
        The samples by name. A short call is repeated in a sample until it takes a twentieth of a second. One that takes
        less than five seconds is made once before its sample, as in training: what the row before has left of memory
        and caches would else be part of it.
    """
    repeats = dict.fromkeys(calls, 1)
    quick = set()
    for name, call in calls.items():
        if (expected or {}).get(name, 0.0) < WARM_UP_BELOW:
            first = seconds_of(call, device)
            # The first call also pays for what is set up once (on a GPU it may compile kernels).
            warm = seconds_of(call, device) if device == "cuda" or first < WARM_UP_BELOW else first
            repeats[name] = max(1, math.ceil(SAMPLE_SECONDS / max(warm, 1e-7)))
            if warm < WARM_UP_BELOW:
                quick.add(name)
    names = list(calls)
    samples: dict[str, list[float]] = {name: [] for name in names}
    begun = time.perf_counter()
    for turn in range(rounds if names else 0):
        first_turn = turn % len(names)
        for name in names[first_turn:] + names[:first_turn]:
            if name in quick:
                calls[name]()
            samples[name].append(seconds_of(calls[name], device, repeats[name]))
        if time.perf_counter() - begun > budget:
            break
    return samples


def matrix_peak(dtype: torch.dtype, device: str) -> float:
    """Operations a second of a large square product, the best of a few."""
    size = PEAK_SIZES[device]
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / min(seconds_of(lambda: left @ right, device) for _ in range(PEAK_ROUNDS))


def wait(device: str) -> None:
    """Until the device has done what it was given: a GPU works on after a call has returned."""
    if device == "cuda":
        torch.cuda.synchronize()
