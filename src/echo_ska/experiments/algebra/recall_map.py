"""recall-map: which untrained memory recalls most per byte, over load, width of the values and kind of keys.

SKA at power 0 against linear attention, as it is and with keys centred, and DeltaNet, all with as many numbers of
state: what SKA spends on its Gram matrix the others spend on longer keys. Values are codewords; an answer is right if
its codeword is the nearest. SKA's ridge and DeltaNet's step are chosen for every cell on trials of their own. About a
minute a kind of keys and seed on one core.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from echo_ska.experiments.algebra import recall_map_report as report
from echo_ska.experiments.algebra.fixed_memories import (
    centred_answers,
    centred_rank,
    delta_answers,
    divided_answers,
    lagged_rank,
    linear_answers,
    linear_rank,
    packed_numbers,
    packed_rank,
    ska_answers,
    ska_statistics,
)
from echo_ska.experiments.trials.pool import Job, Stage
from echo_ska.experiments.trials.recorded import RecordedRun, run_missing
from echo_ska.experiments.trials.studies import print_rows, seed_count, study_files
from echo_ska.training import RunRecord, make_record

NAME = "recall-map"
SEEDS, QUICK_SEEDS = 5, 1
KINDS = ("random", "correlated", "contextual", "rewritten", "noisy queries")
"""Of keys; see `draw_trials`."""


@dataclass(frozen=True)
class MapSettings:
    """What is run for each kind of keys and seed.

    Attributes:
        rank: r of SKA with a packed Gram matrix; with `widths` it sets the number of numbers that all may hold.
        widths: P : r.
        loads: N : r, N being the pairs that are asked for.
        codewords: possible values, random unit vectors.
        answers: about how many are asked in each cell.
        ridges: SKA's choice.
        steps: DeltaNet's choice.
    """

    rank: int = 32
    widths: tuple[float, ...] = (1, 2, 4, 8)
    loads: tuple[float, ...] = (0.5, 1, 1.5, 2, 3, 4, 6, 9, 12, 18, 24)
    codewords: int = 256
    answers: int = 4096
    ridges: tuple[float, ...] = (0.001, 0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
    steps: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 1.0)

    def configuration(self, kind: str) -> dict[str, Any]:
        """As JSON gives it."""
        fields = dataclasses.asdict(self) | {"kind": kind}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


FULL = MapSettings()
QUICK = MapSettings(rank=16, widths=(1, 4), loads=(0.5, 1, 2, 4, 8), answers=1024)


@dataclass(frozen=True)
class Trials:
    """Independent memories to fill and to ask.

    Attributes:
        keys: [B, W, r], unit norm, in the order in which they are written.
        stored: the codeword written with each, [B, W].
        queries: [B, N, r], unit norm.
        wanted: the right answers, [B, N].
    """

    keys: Tensor
    stored: Tensor
    queries: Tensor
    wanted: Tensor


def run(console: Console, *, seeds: int | None = None, quick: bool = False) -> list[RunRecord]:
    """Run what is not recorded, then print the tables and draw the map. `quick`: a small map, one seed."""
    settings = QUICK if quick else FULL
    path, picture = study_files(NAME, quick)
    count = seed_count(seeds, QUICK_SEEDS if quick else SEEDS)
    runs = [kind_run(settings, kind, seed) for seed in range(count) for kind in KINDS]
    records = run_missing(console, NAME, runs, path)
    print_rows(console, "SKA at power 0 less its best peer, points", report.map_rows(records))
    print_rows(console, "Pairs over rank up to which SKA is ahead of linear attention", report.rule_rows(records))
    report.draw(records, picture)
    console.print(f"Records: {path}, picture: {picture}", markup=False, highlight=False, soft_wrap=True)
    return records


def kind_run(settings: MapSettings, kind: str, seed: int) -> RecordedRun:
    """The run of one kind of keys and seed."""
    job = Job(f"{kind}, seed {seed}", run_kind, {"settings": settings, "kind": kind, "seed": seed})
    return RecordedRun(job, seed, settings.configuration(kind))


def run_kind(stage: Stage, *, settings: MapSettings, kind: str, seed: int) -> dict[str, Any]:
    """Fill and ask all memories in every cell of one map: a `RunRecord` as plain data."""
    started = time.perf_counter()
    reporter = stage("recall")
    cells: dict[str, list[float]] = {}
    total = len(settings.widths) * len(settings.loads)
    for width in settings.widths:
        for load in settings.loads:
            generator = torch.Generator().manual_seed(len(cells) + 1000 * (KINDS.index(kind) + 10 * seed))
            cells[f"{width:g}, {load:g}"] = measure_cell(settings, kind, width, load, generator)
            reporter.update(len(cells), total, {})
    seconds = time.perf_counter() - started
    configuration = settings.configuration(kind)
    return dataclasses.asdict(make_record(NAME, configuration, {"cells": cells}, seed=seed, seconds=seconds))


def measure_cell(
    settings: MapSettings, kind: str, width: float, load: float, generator: torch.Generator
) -> list[float]:
    """One cell: `recall_map_report.FIGURES` in their order.

    Accuracies are fractions. Errors are mean |answer - codeword|^2; an empty memory has 1. Dividing a read by a
    positive number does not change which unit codeword is nearest, so the divided read has SKA's accuracy.
    """
    head_dim, pairs = round(width * settings.rank), round(load * settings.rank)
    codebook = _unit(_normal(generator, settings.codewords, head_dim))
    numbers = packed_numbers(settings.rank, head_dim)
    found: dict[str, float] = {}
    for name, rank in (("ska", packed_rank(numbers, head_dim)), ("lagged", lagged_rank(numbers, head_dim))):
        tuning, asked = (draw_trials(kind, settings, pairs, rank, generator) for _ in range(2))
        tuned = ska_statistics(tuning.keys, codebook[tuning.stored])
        ridge = _best(settings.ridges, functools.partial(ska_answers, tuned, tuning.queries), tuning, codebook)
        statistics = ska_statistics(asked.keys, codebook[asked.stored])
        answers = ska_answers(statistics, asked.queries, ridge)
        found[name], found[f"{name}_error"] = score(answers, asked.wanted, codebook)
        found[f"{name}_ridge"] = ridge
        if name == "ska":
            _, found["divided_error"] = score(divided_answers(statistics, asked.queries, ridge), asked.wanted, codebook)
    rank = linear_rank(numbers, head_dim)
    tuning, asked = (draw_trials(kind, settings, pairs, rank, generator) for _ in range(2))
    values = codebook[asked.stored]
    found["linear"], found["linear_error"] = score(
        linear_answers(asked.keys, values, asked.queries), asked.wanted, codebook
    )
    rank_centred = centred_rank(numbers, head_dim)
    centred = draw_trials(kind, settings, pairs, rank_centred, generator)
    answers = centred_answers(centred.keys, codebook[centred.stored], centred.queries)
    found["centred"], _ = score(answers, centred.wanted, codebook)
    tuned_answers = functools.partial(delta_answers, tuning.keys, codebook[tuning.stored], tuning.queries)
    step = _best(settings.steps, tuned_answers, tuning, codebook)
    found["delta"], found["delta_error"] = score(
        delta_answers(asked.keys, values, asked.queries, step), asked.wanted, codebook
    )
    found["delta_step"] = step
    return [float(f"{found[name]:.4g}") for name in report.FIGURES]


def draw_trials(kind: str, settings: MapSettings, pairs: int, rank: int, generator: torch.Generator) -> Trials:
    """Random memories with `pairs` pairs to ask for.

    - random: directions drawn independently.
    - correlated: all keys share a component; the cosine of two keys is about 1/2.
    - contextual: clusters of four keys; the cosine inside a cluster is about 3/4.
    - rewritten: random, and half of the keys are written twice, with two values; the later one is asked for.
    - noisy queries: random; the cosine of a query and its key is 0.8.
    """
    batch = math.ceil(settings.answers / pairs)
    keys = _unit(_normal(generator, batch, pairs, rank))
    stored = torch.randint(settings.codewords, (batch, pairs), generator=generator)
    queries = keys
    if kind == "correlated":
        keys = queries = _unit(keys + _unit(_normal(generator, batch, 1, rank)))
    elif kind == "contextual":
        centres = _unit(_normal(generator, batch, math.ceil(pairs / 4), rank))
        keys = queries = _unit(math.sqrt(3) * centres.repeat_interleave(4, dim=1)[:, :pairs] + keys)
    elif kind == "noisy queries":
        noise = _normal(generator, batch, pairs, rank)
        noise = _unit(noise - (noise * keys).sum(-1, keepdim=True) * keys)
        queries = 0.8 * keys + 0.6 * noise
    elif kind == "rewritten":
        return _rewritten(keys, stored, settings, generator)
    elif kind != "random":
        raise ValueError(f"there is no kind of keys {kind!r}: choose from {', '.join(KINDS)}")
    return Trials(keys, stored, queries, stored)


def _rewritten(keys: Tensor, stored: Tensor, settings: MapSettings, generator: torch.Generator) -> Trials:
    batch, pairs, _ = keys.shape
    again = pairs // 2
    events = torch.cat([torch.arange(pairs), torch.arange(again)])
    order = torch.rand(batch, pairs + again, generator=generator).argsort(dim=1)
    written = events[order]  # [B, W]: which pair
    values = torch.randint(settings.codewords, written.shape, generator=generator)
    wanted = torch.empty_like(stored)
    for time_of in range(written.shape[1]):  # the later value stays
        wanted.scatter_(1, written[:, time_of, None], values[:, time_of, None])
    rows = torch.arange(batch)[:, None]
    return Trials(keys[rows, written], values, keys, wanted)


def score(answers: Tensor, wanted: Tensor, codebook: Tensor) -> tuple[float, float]:
    """Share of answers whose nearest codeword is the wanted one, and mean |answer - codeword|^2."""
    nearest = (answers @ codebook.mT).argmax(-1)  # codewords have unit norm: the largest product is the nearest
    error = (answers - codebook[wanted]).square().sum(-1).mean()
    return float((nearest == wanted).double().mean()), float(error)


def _best(choices: tuple[float, ...], answer: Callable[[float], Tensor], trials: Trials, codebook: Tensor) -> float:
    """The choice with the most right answers; of several, the one with the least error."""
    scores = {choice: score(answer(choice), trials.wanted, codebook) for choice in choices}
    return max(choices, key=lambda choice: (scores[choice][0], -scores[choice][1]))


def _unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors, dim=-1)


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)
