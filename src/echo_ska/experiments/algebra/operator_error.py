"""operator-error: how near is the fitted operator M (G + ridge I)^-1 to the true map from a key to the next?

Keys follow a linear system whose matrix is known, in three ways that differ in where the noise enters; the error's
spectral norm is followed over the length, the noise and the ridge, beside the bound that docs/algebra.md derives. About
ten seconds a seed on one core.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from echo_ska.algebra import RidgeFactor, SufficientStatistics
from echo_ska.experiments.algebra import operator_error_report as report
from echo_ska.experiments.trials.pool import Job, Stage
from echo_ska.experiments.trials.recorded import RecordedRun, run_missing
from echo_ska.experiments.trials.studies import print_rows, seed_count, study_files
from echo_ska.training import RunRecord, make_record

NAME = "operator-error"
SEEDS, QUICK_SEEDS = 8, 2


@dataclass(frozen=True)
class OperatorSettings:
    """What is run for each seed.

    Attributes:
        rank: r, even.
        lengths: keys read, ascending.
        noises: standard deviations of the noise in every direction.
        ridges: > 0.
        moduli: smallest and largest modulus of the eigenvalues of the damped systems, equally spaced between.
    """

    rank: int = 16
    lengths: tuple[int, ...] = tuple(2**exponent for exponent in range(6, 17))
    noises: tuple[float, ...] = (0.03, 0.1, 0.3)
    ridges: tuple[float, ...] = (1e-3, 1.0, 100.0)
    moduli: tuple[float, float] = (0.5, 0.98)

    def configuration(self) -> dict[str, Any]:
        """As JSON gives it."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()
        }


FULL, QUICK = OperatorSettings(), OperatorSettings(lengths=tuple(2**exponent for exponent in range(6, 13)))


@dataclass(frozen=True)
class Series:
    """Keys with a known operator, side by side for every noise (the batch).

    Attributes:
        keys: [B, T, r].
        operator: K, the map that the system itself applies, [r, r].
        limit: what M (G + ridge I)^-1 tends to with the length, [B, r, r]: K, or K shrunk by the noise.
        rate: c in the predicted error from noise c / sqrt(T), by noise; None where no prediction is made.
    """

    keys: Tensor
    operator: Tensor
    limit: Tensor
    rate: list[float] | None


def run(console: Console, *, seeds: int | None = None, quick: bool = False) -> list[RunRecord]:
    """Run what is not recorded, then print the table and draw the picture. `quick`: short series, two seeds."""
    settings = QUICK if quick else FULL
    path, picture = study_files(NAME, quick)
    runs = [seed_run(settings, seed) for seed in range(seed_count(seeds, QUICK_SEEDS if quick else SEEDS))]
    records = run_missing(console, NAME, runs, path)
    print_rows(console, "Error of the fitted operator", report.table_rows(records))
    report.draw(records, picture)
    console.print(f"Records: {path}, picture: {picture}", markup=False, highlight=False, soft_wrap=True)
    return records


def seed_run(settings: OperatorSettings, seed: int) -> RecordedRun:
    """The run of one seed: all systems, lengths, noises and ridges."""
    job = Job(f"seed {seed}", run_seed, {"settings": settings, "seed": seed})
    return RecordedRun(job, seed, settings.configuration())


def run_seed(stage: Stage, *, settings: OperatorSettings, seed: int) -> dict[str, Any]:
    """Fit every operator of one seed: a `RunRecord` as plain data."""
    started = time.perf_counter()
    reporter = stage("fitting")
    systems: dict[str, Any] = {}
    for done, (name, simulate) in enumerate(SYSTEMS.items()):
        generator = torch.Generator().manual_seed(1000 * seed + done)
        systems[name] = measure(simulate(settings, generator), settings)
        reporter.update(done + 1, len(SYSTEMS), {})
    seconds = time.perf_counter() - started
    return dataclasses.asdict(
        make_record(NAME, settings.configuration(), {"systems": systems}, seed=seed, seconds=seconds)
    )


def linear(settings: OperatorSettings, generator: torch.Generator) -> Series:
    """x_{t+1} = K x_t + noise w_t: the noise drives the system, and so the keys grow with it."""
    operator, moduli = damped_operator(settings, generator)
    noises = torch.tensor(settings.noises, dtype=torch.float64)
    keys = _driven(operator, noises, settings.lengths[-1], generator)
    # In the modes' basis the stationary covariance is noise^2 / (1 - modulus^2): the noise cancels.
    widths = (1 - moduli**2).sqrt()
    rate = float(math.sqrt(settings.rank) * widths.max() + widths.norm())
    return Series(keys, operator, operator.expand(len(noises), -1, -1), [rate] * len(noises))


def sphere(settings: OperatorSettings, generator: torch.Generator) -> Series:
    """x_{t+1} = (K x_t + noise w_t) / |...| with a rotation K: keys of unit norm, as a layer's are."""
    rank = settings.rank
    operator, _ = rotation(rank, torch.ones(rank // 2, dtype=torch.float64), generator)
    noises = torch.tensor(settings.noises, dtype=torch.float64)[:, None]
    kicks = torch.randn(settings.lengths[-1], rank, generator=generator, dtype=torch.float64)
    key = torch.nn.functional.normalize(kicks[-1:].expand(len(noises), -1), dim=-1)
    keys = []
    for kick in kicks:
        keys.append(key)
        key = torch.nn.functional.normalize(key @ operator.mT + noises * kick, dim=-1)
    kept = mean_alignment(noises.squeeze(1), rank)
    rate = [2 * math.sqrt(rank * (1 - float(c) ** 2)) for c in kept]
    return Series(torch.stack(keys, dim=1), operator, kept[:, None, None] * operator, rate)


def observed(settings: OperatorSettings, generator: torch.Generator) -> Series:
    """Keys x_t + noise v_t of a system x_{t+1} = K x_t + w_t with keys of about unit norm: noise that is only seen."""
    operator, moduli = damped_operator(settings, generator)
    stationary = 1 / (1 - moduli**2)
    drive = 1 / stationary.sum().sqrt()  # then E |x|^2 = 1
    latent = _driven(operator, drive[None], settings.lengths[-1], generator)
    noises = torch.tensor(settings.noises, dtype=torch.float64)[:, None, None]
    seen = torch.randn(len(noises), *latent.shape[1:], generator=generator, dtype=torch.float64)
    covariance = drive**2 * torch.linalg.inv(torch.eye(settings.rank, dtype=torch.float64) - operator @ operator.mT)
    limit = (
        operator @ covariance @ torch.linalg.inv(covariance + noises**2 * torch.eye(settings.rank, dtype=torch.float64))
    )
    return Series(latent + noises * seen, operator, limit, None)


SYSTEMS: dict[str, Callable[[OperatorSettings, torch.Generator], Series]] = {
    "linear": linear,
    "sphere": sphere,
    "observed": observed,
}
"""By the name that records and tables use."""


def measure(series: Series, settings: OperatorSettings) -> dict[str, Any]:
    """Errors and their parts at every length; see docs/algebra.md for the identity behind the parts.

    Returns:
        `bias`, |limit - K| by noise; `rate`, as in `Series`; `rows` by "noise, ridge": for every length the error
        |K^ - K|, the distance |K^ - limit|, the parts of the latter from noise, ridge and last key, and the bound on
        the error, all spectral norms, four digits.
    """
    rows: dict[str, list[list[float]]] = {
        f"{noise:g}, {ridge:g}": [] for noise in settings.noises for ridge in settings.ridges
    }
    statistics: SufficientStatistics | None = None
    read = 0
    for length in settings.lengths:
        keys = series.keys[:, read:length, None]  # [B, t, 1, r]
        block = SufficientStatistics.from_tokens(keys, keys[..., :1])
        statistics, read = block if statistics is None else statistics + block, length
        for ridge in settings.ridges:
            for noise, row in zip(settings.noises, _errors(statistics, series, ridge), strict=True):
                rows[f"{noise:g}, {ridge:g}"].append([float(f"{value:.4g}") for value in row])
    bias = torch.linalg.matrix_norm(series.limit - series.operator, ord=2)
    return {"bias": [float(f"{value:.4g}") for value in bias.tolist()], "rate": series.rate, "rows": rows}


def fitted_operator(statistics: SufficientStatistics, ridge: float) -> Tensor:
    """M (G + ridge I)^-1, [B, r, r], of statistics with one head."""
    factor = RidgeFactor.of(statistics.gram, ridge).require_success()
    return factor.solve(statistics.lag_moment).squeeze(1)


def _errors(statistics: SufficientStatistics, series: Series, ridge: float) -> list[list[float]]:
    """By noise: error, distance to the limit, its parts from noise, ridge and last key, and the bound on the error."""
    gram, lag, last = statistics.gram[:, 0], statistics.lag_moment[:, 0], statistics.previous_key[:, 0]
    factor = RidgeFactor.of(gram, ridge)
    ends = last.unsqueeze(-1) * last.unsqueeze(-2)
    noise = lag - series.limit @ (gram - ends)
    fitted = fitted_operator(statistics, ridge)

    def norm(matrix: Tensor) -> Tensor:
        return torch.linalg.matrix_norm(matrix, ord=2)

    least = torch.linalg.eigvalsh(gram)[:, 0] + ridge
    bound = (
        norm(series.limit - series.operator)
        + norm(factor.whiten(noise)) / least.sqrt()
        + ridge * norm(series.limit) / least
        + (series.limit @ last.unsqueeze(-1)).squeeze(-1).norm(dim=-1) * last.norm(dim=-1) / least
    )
    parts = [
        norm(fitted - series.operator),
        norm(fitted - series.limit),
        norm(factor.solve(noise)),
        ridge * norm(factor.solve(series.limit)),
        norm(factor.solve(series.limit @ ends)),
        bound,
    ]
    by_noise: list[list[float]] = torch.stack(parts, dim=1).tolist()
    return by_noise


def rotation(rank: int, moduli: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A normal matrix with eigenvalues modulus * exp(+-i angle) in random planes, and every direction's modulus."""
    angles = math.pi * torch.rand(rank // 2, generator=generator, dtype=torch.float64)
    cos, sin = moduli * angles.cos(), moduli * angles.sin()
    blocks = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    basis, _ = torch.linalg.qr(torch.randn(rank, rank, generator=generator, dtype=torch.float64))
    return basis @ torch.block_diag(*blocks) @ basis.mT, moduli.repeat_interleave(2)


def damped_operator(settings: OperatorSettings, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """K of the damped systems, and the modulus of every direction of its modes."""
    return rotation(settings.rank, torch.linspace(*settings.moduli, settings.rank // 2, dtype=torch.float64), generator)


def mean_alignment(noises: Tensor, rank: int) -> Tensor:
    """E of the first coordinate of (e_1 + noise w) / |e_1 + noise w|: what a step on the sphere keeps of K x."""
    kicks = torch.randn(100_000, rank, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moved = noises[:, None, None] * kicks
    moved[..., 0] += 1
    return (moved[..., 0] / moved.norm(dim=-1)).mean(1)


def _driven(operator: Tensor, noises: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """x_{t+1} = K x_t + noise w_t from its stationary distribution, [B, T, r]."""
    rank = operator.shape[0]
    kicks = torch.randn(length, rank, generator=generator, dtype=torch.float64)
    covariance = torch.linalg.inv(torch.eye(rank, dtype=torch.float64) - operator @ operator.mT)
    key = torch.linalg.cholesky(covariance) @ torch.randn(rank, generator=generator, dtype=torch.float64)
    keys = []
    for kick in kicks:
        keys.append(key)
        key = operator @ key + kick
    return noises[:, None, None] * torch.stack(keys)
