"""The gate: what does not compute its definition, outputs and gradients, gets no speed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from echo_ska.benchmarks.plan import Sizes
from echo_ska.benchmarks.routes import TOLERANCES, Route
from echo_ska.benchmarks.sources import INPUTS, Inputs, Source


@dataclass(frozen=True)
class Verdict:
    """What the gate found.

    Attributes:
        error: the largest error over the largest entry, of outputs and gradients; infinite where nothing came out.
        tolerance: what it may be for the dtype of the timed inputs.
        reason: why it did not pass, one sentence; None if it did.
    """

    error: float
    tolerance: float
    reason: str | None

    @property
    def passed(self) -> bool:
        """Whether speeds may be measured."""
        return self.reason is None


def verdict(tolerance: float, compare: Callable[[], Mapping[str, tuple[float, float]]]) -> Verdict:
    """Judge by errors and what each may be, by where they were found. Whatever `compare` raises is a failure too."""
    try:
        found = compare()
    except Exception as error:
        said = " ".join(str(error).split()) or "no reason given"
        return Verdict(math.inf, tolerance, f"it raised {type(error).__name__}: {said[:200]}")
    bad = [f"{error:.1e} {where}, above {most:.0e}" for where, (error, most) in found.items() if not error <= most]
    worst = max(error for error, _ in found.values())
    return Verdict(worst, tolerance, f"its error is {' and '.join(bad)}" if bad else None)


def judge(route: Route, sizes: Sizes, device: str, lengths: tuple[int, int]) -> Verdict:
    """Compare a route with its definition at lengths[0] and with its float64 reference at lengths[1]."""
    short, long = lengths
    tolerance = TOLERANCES[route.dtype]

    def compare() -> dict[str, tuple[float, float]]:
        errors = {}
        inputs = _inputs(route, sizes, short)
        expected = outcome(route.definition, _cast(inputs, torch.float64, "cpu"))
        if route.reference is not route.definition:
            exact = outcome(route.reference, _cast(inputs, torch.float64, "cpu"))
            errors["of its float64 reference"] = largest_error(exact, expected), TOLERANCES[torch.float64]
        found = outcome(route.run, _cast(inputs, route.dtype, device))
        errors[f"at {short:,} tokens"] = largest_error(found, expected), tolerance
        inputs = _inputs(route, sizes, long)
        expected = outcome(route.reference, _cast(inputs, torch.float64, "cpu"))
        found = outcome(route.run, _cast(inputs, route.dtype, device))
        errors[f"at {long:,} tokens"] = largest_error(found, expected), tolerance
        return errors

    return verdict(tolerance, compare)


def outcome(run: Callable[..., Tensor], inputs: Inputs) -> list[Tensor]:
    """The output and the gradients of a random function of it, in the order of the inputs; float64, on the CPU."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    output = run(**leaves)
    target = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = torch.autograd.grad(output, list(leaves.values()), target.to(output))
    return [tensor.detach().double().cpu() for tensor in (output, *gradients)]


def largest_error(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest error of any tensor over that tensor's largest entry; NaN and wrong shapes count as infinite."""
    worst = 0.0
    for value, right in zip(found, expected, strict=True):
        if value.shape != right.shape or not bool(value.isfinite().all()):
            return math.inf
        worst = max(worst, float((value - right).abs().max() / right.abs().max().clamp_min(1e-300)))
    return worst


def _inputs(route: Route, sizes: Sizes, tokens: int) -> Inputs:
    """Rounded to the route's dtype, so that its definition reads the same numbers."""
    source = Source(torch.float64, "cpu")
    return {name: tensor.to(route.dtype) for name, tensor in INPUTS[route.inputs](sizes, source, tokens).items()}


def _cast(inputs: Inputs, dtype: torch.dtype, device: str) -> Inputs:
    return {name: tensor.to(device=device, dtype=dtype) for name, tensor in inputs.items()}
