"""one-off-distractors: what the power filter does to keys that occur once, among keys that follow a rotation.

Two readings of the power K are held against each other: persistence ("transient keys are suppressed as |lambda|^K")
and look-ahead ("the read answers for the key K steps after the match"). A second series, whose keys decay in planes of
known moduli, shows what |lambda|^K does describe. About five seconds a seed on one core.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from echo_ska.algebra import KoopmanOperator, RidgeFactor, SufficientStatistics
from echo_ska.experiments.algebra import one_off_report as report
from echo_ska.experiments.algebra.operator_error import rotation
from echo_ska.experiments.trials.pool import Job, Stage
from echo_ska.experiments.trials.recorded import RecordedRun, run_missing
from echo_ska.experiments.trials.studies import print_rows, seed_count, study_files
from echo_ska.training import RunRecord, make_record

NAME = "one-off-distractors"
SEEDS, QUICK_SEEDS = 8, 2

FILTERS: dict[str, tuple[int, float | None]] = {
    **{f"K={power}": (power, None) for power in (0, 1, 2, 3, 4)},
    "K=2 blended": (2, 0.5),
}
"""Power and blend by the name that records and tables use."""

PLACES = ("apart", "anywhere")
"""Where one-off keys point: at right angles to the persistent ones, or in any direction of the whole space."""


@dataclass(frozen=True)
class DistractorSettings:
    """What is run for each seed.

    Attributes:
        rank: r, width of keys.
        persistent: m < r, even, dimensions in which the persistent keys turn.
        length: T, keys written.
        one_offs: how many of them are one-off keys, each alone between persistent ones.
        ridges: > 0.
        moduli: of the planes of the second series, whose keys decay.
        mode_length: keys of the second series.
    """

    rank: int = 32
    persistent: int = 8
    length: int = 2048
    one_offs: tuple[int, ...] = (6, 24, 96, 384)
    ridges: tuple[float, ...] = (0.1, 1.0)
    moduli: tuple[float, ...] = (0.99, 0.9, 0.7, 0.4)
    mode_length: int = 16_384

    def configuration(self) -> dict[str, Any]:
        """As JSON gives it."""
        fields = dataclasses.asdict(self) | {"filters": list(FILTERS), "places": PLACES}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


@dataclass(frozen=True)
class Series:
    """Keys that turn, with one-off keys in place of some of them.

    Attributes:
        keys: [T, r], unit norm.
        values: [T, m + r]: a persistent key's place in its subspace, then zeros; or zeros, then a one-off key's own
            random unit vector.
        clock: what the persistent key is, or would be, at every time, as a value, [T + 8, m + r].
        one_off: times of the one-off keys.
    """

    keys: Tensor
    values: Tensor
    clock: Tensor
    one_off: Tensor


def run(console: Console, *, seeds: int | None = None, quick: bool = False) -> list[RunRecord]:
    """Run what is not recorded, then print the tables and draw the picture. `quick` takes two seeds."""
    path, picture = study_files(NAME, quick)
    count = seed_count(seeds, QUICK_SEEDS if quick else SEEDS)
    records = run_missing(console, NAME, [seed_run(DistractorSettings(), seed) for seed in range(count)], path)
    print_rows(console, "Reads with a one-off and with a persistent key", report.table_rows(records))
    print_rows(console, "Keys that decay: |f(A) z| : |z|", report.mode_rows(records))
    report.draw(records, picture)
    console.print(f"Records: {path}, picture: {picture}", markup=False, highlight=False, soft_wrap=True)
    return records


def seed_run(settings: DistractorSettings, seed: int) -> RecordedRun:
    """The run of one seed."""
    job = Job(f"seed {seed}", run_seed, {"settings": settings, "seed": seed})
    return RecordedRun(job, seed, settings.configuration())


def run_seed(stage: Stage, *, settings: DistractorSettings, seed: int) -> dict[str, Any]:
    """Read every series of one seed with every filter: a `RunRecord` as plain data."""
    started = time.perf_counter()
    reporter = stage("reading")
    generator = torch.Generator().manual_seed(seed)
    reads: dict[str, Any] = {}
    for place in PLACES:
        for one_offs in settings.one_offs:
            series = turning_series(settings, one_offs, place, generator)
            for ridge in settings.ridges:
                reads[f"{place}, {one_offs}, {ridge:g}"] = measure(series, settings, ridge, generator)
            reporter.update(len(reads), len(PLACES) * len(settings.one_offs) * len(settings.ridges), {})
    figures = {"reads": reads, "modes": measure_modes(settings, generator)}
    seconds = time.perf_counter() - started
    return dataclasses.asdict(make_record(NAME, settings.configuration(), figures, seed=seed, seconds=seconds))


def turning_series(settings: DistractorSettings, one_offs: int, place: str, generator: torch.Generator) -> Series:
    """A rotation in m dimensions of R^r, with `one_offs` of its keys replaced; no two neighbours are, nor the ends."""
    rank, persistent, length = settings.rank, settings.persistent, settings.length
    turn, _ = rotation(persistent, torch.ones(persistent // 2, dtype=torch.float64), generator)
    point = torch.nn.functional.normalize(_normal(generator, persistent), dim=0)
    points = []
    for _ in range(length + 8):
        points.append(point)
        point = turn @ point
    path = torch.stack(points)
    basis, _ = torch.linalg.qr(_normal(generator, rank, rank))
    keys = path[:length] @ basis[:, :persistent].mT
    # Choosing from a line with one_offs - 1 fewer places and spreading the choices by one each leaves no neighbours.
    room = torch.randperm(length - 16 - (one_offs - 1), generator=generator)[:one_offs]
    times = 8 + room.sort().values + torch.arange(one_offs)
    if place == "apart":
        noise = _normal(generator, one_offs, rank - persistent) @ basis[:, persistent:].mT
    else:
        noise = _normal(generator, one_offs, rank)
    keys[times] = torch.nn.functional.normalize(noise, dim=-1)
    nothing = torch.zeros(length + 8, rank, dtype=torch.float64)
    clock = torch.cat([path, nothing], dim=1)
    values = clock[:length].clone()
    tags = torch.nn.functional.normalize(_normal(generator, one_offs, rank), dim=-1)
    values[times] = torch.cat([torch.zeros(one_offs, persistent, dtype=torch.float64), tags], dim=1)
    return Series(keys, values, clock, times)


def measure(series: Series, settings: DistractorSettings, ridge: float, generator: torch.Generator) -> dict[str, Any]:
    """How every filter reads one-off keys, persistent keys, and persistent keys hidden in fresh noise.

    Returns:
        `leverage`, x^T (G + ridge I)^-1 x of one-off keys; `moduli`, the mean modulus of A's m largest eigenvalues and
        of the others; and by filter `one_off`, `persistent` and `noisy`, each with four means: the whitened norm
        |f(A) L^-1 q|, the read's component along the value stored at the match, its component along the value of the
        persistent clock K steps after the match, and its norm.
    """
    statistics = SufficientStatistics.from_tokens(series.keys[None, :, None], series.values[None, :, None])
    factor = RidgeFactor.of(statistics.gram[0, 0], ridge).require_success()
    operator = KoopmanOperator.of(factor, statistics.lag_moment[0, 0])
    readout = factor.whiten(statistics.value_moment[0, 0])
    asked = torch.ones(len(series.keys), dtype=torch.bool)
    asked[series.one_off], asked[:8], asked[-8:] = False, False, False
    times = {"one_off": series.one_off, "persistent": asked.nonzero().squeeze(1)}
    times["noisy"] = times["persistent"]
    queries = {name: series.keys[times[name]] for name in times}
    noise = torch.nn.functional.normalize(_normal(generator, *queries["noisy"].shape), dim=-1)
    queries["noisy"] = torch.nn.functional.normalize(queries["noisy"] + noise, dim=-1)
    moduli = operator.eigenvalues().abs().sort(descending=True).values
    found: dict[str, Any] = {
        "leverage": _digits(factor.whiten(queries["one_off"]).square().sum(-1).mean()),
        "moduli": [_digits(moduli[: settings.persistent].mean()), _digits(moduli[settings.persistent :].mean())],
    }
    for name, (power, blend) in FILTERS.items():
        found[name] = {}
        for kind, query in queries.items():
            weights = None if blend is None else query.new_full((len(query),), blend)
            filtered = operator.filter(factor.whiten(query), power, 1.0, weights)
            answer = filtered @ readout.mT
            found[name][kind] = [
                _digits(filtered.norm(dim=-1).mean()),
                _digits((answer * series.values[times[kind]]).sum(-1).mean()),
                _digits((answer * series.clock[times[kind] + power]).sum(-1).mean()),
                _digits(answer.norm(dim=-1).mean()),
            ]
    return found


def measure_modes(settings: DistractorSettings, generator: torch.Generator) -> dict[str, list[float]]:
    """|f(A) z| / |z| by filter for unit queries in each plane of a noise-driven system with known moduli."""
    rank = 2 * len(settings.moduli)
    turn, _ = rotation(rank, torch.tensor(settings.moduli, dtype=torch.float64), generator)
    # The planes are what K^T K = modulus^2 leaves invariant: K is normal.
    values, vectors = torch.linalg.eigh(turn.mT @ turn)
    key, keys = torch.zeros(rank, dtype=torch.float64), []
    for kick in _normal(generator, settings.mode_length + 512, rank):
        key = turn @ key + kick
        keys.append(key)
    series = torch.stack(keys[512:])[None, :, None]
    statistics = SufficientStatistics.from_tokens(series, series)
    factor = RidgeFactor.of(statistics.gram[0, 0], 1.0).require_success()
    operator = KoopmanOperator.of(factor, statistics.lag_moment[0, 0])
    queries = vectors.mT[values.argsort(descending=True)]
    whitened = factor.whiten(queries)
    found = {}
    for name, (power, blend) in FILTERS.items():
        weights = None if blend is None else whitened.new_full((rank,), blend)
        ratio = operator.filter(whitened, power, 1.0, weights).norm(dim=-1) / whitened.norm(dim=-1)
        found[name] = [_digits(value) for value in ratio.view(-1, 2).mean(1)]
    return found


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _digits(value: Tensor) -> float:
    """Three digits; what is only rounding is 0."""
    return float(f"{float(value):.3g}") if abs(float(value)) > 1e-9 else 0.0
