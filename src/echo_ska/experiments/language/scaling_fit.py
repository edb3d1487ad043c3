"""A power law with a floor, L(N) = E + A / N^a, fitted to a handful of sizes, and how sure one can be of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

EXPONENTS = np.geomspace(0.01, 3.0, 600)


@dataclass(frozen=True)
class PowerLaw:
    """L(N) = floor + amplitude / N^exponent.

    Attributes:
        floor: E, at least 0: what no size would take away.
        amplitude: A, at least 0.
        exponent: a.
    """

    floor: float
    amplitude: float
    exponent: float

    def at(self, size: float) -> float:
        """L(N)."""
        return float(self.floor + self.amplitude * size**-self.exponent)


@dataclass(frozen=True)
class Interval:
    """A value and the middle nine tenths of its resampled ones; None for both ends where nothing was resampled."""

    value: float
    low: float | None
    high: float | None


def fit_power_law(sizes: Sequence[float], losses: Sequence[float]) -> PowerLaw:
    """The law with the smallest sum of squared errors among a grid of exponents, 0.01 to 3; E and A are not negative.

    Args:
        sizes: N, at least three different ones.
        losses: L, one a size.

    Raises:
        ValueError: there are fewer than three sizes: three numbers are fitted.
    """
    if len(set(sizes)) < 3 or len(sizes) != len(losses):
        raise ValueError(f"A power law with a floor needs at least three sizes and a loss each, got {len(set(sizes))}.")
    target = np.asarray(losses, dtype=np.float64)
    # Relative sizes: the terms are then of one order, whatever the exponent.
    scale = float(np.exp(np.mean(np.log(sizes))))
    terms = (np.asarray(sizes, dtype=np.float64) / scale)[None] ** -EXPONENTS[:, None]  # [exponents, sizes]
    mean, spread = terms.mean(1), terms - terms.mean(1, keepdims=True)
    slope = (spread @ (target - target.mean())) / (spread**2).sum(1)
    floor = target.mean() - slope * mean
    without_floor = (terms @ target) / (terms**2).sum(1)
    slope = np.where(floor < 0, without_floor, np.maximum(slope, 0.0))
    floor = np.where(floor < 0, 0.0, target.mean() - slope * mean)
    errors = ((floor[:, None] + slope[:, None] * terms - target) ** 2).sum(1)
    best = int(errors.argmin())
    exponent = float(EXPONENTS[best])
    return PowerLaw(float(floor[best]), float(slope[best] * scale**exponent), exponent)


def resampled(losses: Mapping[float, Sequence[float]], draws: int = 1000, seed: int = 0) -> list[PowerLaw]:
    """Laws fitted to means over seeds that are drawn anew, with replacement, at each size.

    Args:
        losses: by size, one a seed.
        draws: how many laws; none where every size has one seed, since nothing is known of its spread.
        seed: of the draws.
    """
    if all(len(values) < 2 for values in losses.values()):
        return []
    generator = np.random.default_rng(seed)
    sizes = list(losses)
    return [
        fit_power_law(sizes, [float(np.mean(generator.choice(losses[size], len(losses[size])))) for size in sizes])
        for _ in range(draws)
    ]


def interval(value: float, others: Sequence[float]) -> Interval:
    """A value with the 5th and the 95th percentile of `others`."""
    if not others:
        return Interval(value, None, None)
    low, high = np.quantile(np.asarray(others), [0.05, 0.95])
    return Interval(value, float(low), float(high))
