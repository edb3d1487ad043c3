"""state-precision: how few bits may a state's numbers have, when the bytes that they save go into its rank?

Untrained memories, as in `recall-map`: SKA at power 0 (the Gram matrix as a triangle, and the value moment), linear
attention and DeltaNet, with values of 64 numbers. In every precision each has the largest rank whose state takes no
more bytes than SKA's in float32 at rank 32. What is stored is rounded

- once: the sums are exact while the context is read, and rounded when it ends, as a saved context would be;
- in segments: after every 16 pairs, as a state that is kept in that precision and read on in segments would be;
- always: after every pair, as by a decoder that has no more than that precision.

int8 keeps a scale in float32 for every row, which is counted. SKA's ridge and DeltaNet's step are the best of some on
other memories of the same kind.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from echo_ska.algebra import RidgeFactor, SufficientStatistics
from echo_ska.experiments.algebra import state_precision_report as report
from echo_ska.experiments.algebra.fixed_memories import delta_memory, linear_numbers, packed_numbers, ska_answers
from echo_ska.experiments.algebra.recall_map import MapSettings, Trials, draw_trials, score
from echo_ska.experiments.trials.pool import Job, Stage
from echo_ska.experiments.trials.recorded import RecordedRun, run_missing
from echo_ska.experiments.trials.studies import print_rows, seed_count, study_files
from echo_ska.training import RunRecord, make_record

NAME = "state-precision"
SEEDS, QUICK_SEEDS = 3, 1
KINDS = ("random", "correlated", "contextual")
"""Of keys; see `recall_map.draw_trials`."""
WAYS = {"once": None, "in segments": 16, "always": 1}
"""Pairs after which what is stored is rounded; None is after the last."""

State = tuple[Tensor, ...]
"""The matrices of a memory, [B, m, n] each; a symmetric one as its upper triangle."""


@dataclass(frozen=True)
class Precision:
    """A way to store numbers.

    Attributes:
        size: bytes a number.
        rounded: a matrix [..., m, n] as it is after it was stored.
        row_size: further bytes for every row of a matrix.
    """

    size: int
    rounded: Callable[[Tensor], Tensor]
    row_size: int = 0


def _as(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda numbers: numbers.to(dtype).double()


def _eight_bits(numbers: Tensor) -> Tensor:
    """In 255 equal steps between plus and minus the largest of a row."""
    step = (numbers.abs().amax(-1, keepdim=True) / 127).float().double()
    return torch.where(step > 0, (numbers / step).round().clamp(-127, 127) * step, 0.0)


PRECISIONS = {
    "float64": Precision(8, _as(torch.float64)),
    "float32": Precision(4, _as(torch.float32)),
    "float16": Precision(2, _as(torch.float16)),
    "bfloat16": Precision(2, _as(torch.bfloat16)),
    "int8": Precision(1, _eight_bits, row_size=4),
}


def _held(state: State) -> SufficientStatistics:
    upper, moment = (matrix.unsqueeze(1) for matrix in state)
    nothing = torch.zeros_like(upper)
    count = torch.zeros(len(upper), dtype=torch.int64)
    return SufficientStatistics(upper + upper.triu(1).mT, nothing, moment, nothing[..., 0], nothing[..., 0], count)


def _more_sums(state: State, keys: Tensor, values: Tensor, step: float) -> State:
    upper, moment = state
    return upper + (keys.mT @ keys).triu(), moment + values.mT @ keys


def _more_pairs(state: State, keys: Tensor, values: Tensor, step: float) -> State:
    return (state[0] + values.mT @ keys,)


def _corrected(state: State, keys: Tensor, values: Tensor, step: float) -> State:
    return (delta_memory(keys, values, step, state[0]),)


@dataclass(frozen=True)
class Memory:
    """A way to remember.

    Attributes:
        shapes: of the matrices of a state, by rank and width of values.
        numbers: that they hold.
        write: the state after further pairs, keys [B, n, r] and values [B, n, P], by a step.
        read: what queries [B, N, r] are answered from a state, at a ridge.
        steps, ridges: to choose from.
        solved: which of the memories [B] have a factor at a ridge; None where nothing is solved.
    """

    shapes: Callable[[int, int], tuple[tuple[int, int], ...]]
    numbers: Callable[[int, int], int]
    write: Callable[[State, Tensor, Tensor, float], State]
    read: Callable[[State, Tensor, float], Tensor]
    steps: tuple[float, ...] = (1.0,)
    ridges: tuple[float, ...] = (1.0,)
    solved: Callable[[State, float], Tensor] | None = None


MEMORIES = {
    "SKA": Memory(
        lambda rank, head_dim: ((rank, rank), (head_dim, rank)),
        packed_numbers,
        _more_sums,
        lambda state, queries, ridge: ska_answers(_held(state), queries, ridge),
        ridges=(0.001, 0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
        solved=lambda state, ridge: RidgeFactor.of(_held(state).gram, ridge).info.flatten() == 0,
    ),
    "linear attention": Memory(
        lambda rank, head_dim: ((head_dim, rank),),
        linear_numbers,
        _more_pairs,
        lambda state, queries, _: queries @ state[0].mT,
    ),
    "DeltaNet": Memory(
        lambda rank, head_dim: ((head_dim, rank),),
        linear_numbers,
        _corrected,
        lambda state, queries, _: queries @ state[0].mT,
        steps=(0.1, 0.2, 0.4, 0.7, 1.0),
    ),
}


@dataclass(frozen=True)
class PrecisionSettings:
    """What is run for each kind of keys and seed.

    Attributes:
        rank: r of SKA in float32, which sets the bytes of all.
        head_dim: P.
        loads: N : r, N being the pairs that are asked for.
        codewords: possible values, random unit vectors.
        answers: about how many are asked in each cell.
    """

    rank: int = 32
    head_dim: int = 64
    loads: tuple[float, ...] = (0.5, 1, 2, 4, 6, 9, 12)
    codewords: int = 256
    answers: int = 4096

    @property
    def bytes(self) -> int:
        """Of every state."""
        return PRECISIONS["float32"].size * packed_numbers(self.rank, self.head_dim)

    def rank_of(self, memory: Memory, precision: Precision) -> int:
        """The largest within the bytes."""
        rank = 1
        while self._bytes_at(rank + 1, memory, precision) <= self.bytes:
            rank += 1
        return rank

    def _bytes_at(self, rank: int, memory: Memory, precision: Precision) -> int:
        rows = sum(rows for rows, _ in memory.shapes(rank, self.head_dim))
        return precision.size * memory.numbers(rank, self.head_dim) + precision.row_size * rows

    def configuration(self, kind: str) -> dict[str, Any]:
        """As JSON gives it."""
        fields = dataclasses.asdict(self) | {"kind": kind}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}

    def map_settings(self) -> MapSettings:
        """For `draw_trials`."""
        return MapSettings(codewords=self.codewords, answers=self.answers)


FULL = PrecisionSettings()
QUICK = PrecisionSettings(rank=16, head_dim=32, loads=(1, 4), answers=1024)


def run(console: Console, *, seeds: int | None = None, quick: bool = False) -> list[RunRecord]:
    """Run what is not recorded, then print the table and draw the picture. `quick`: small memories, one seed."""
    settings = QUICK if quick else FULL
    path, picture = study_files(NAME, quick)
    count = seed_count(seeds, QUICK_SEEDS if quick else SEEDS)
    runs = [kind_run(settings, kind, seed) for seed in range(count) for kind in KINDS]
    records = run_missing(console, NAME, runs, path)
    print_rows(console, f"Right answers, %, with {settings.bytes:,} bytes of state", report.table_rows(records))
    report.draw(records, picture)
    console.print(f"Records: {path}, picture: {picture}", markup=False, highlight=False, soft_wrap=True)
    return records


def kind_run(settings: PrecisionSettings, kind: str, seed: int) -> RecordedRun:
    """The run of one kind of keys and seed."""
    job = Job(f"{kind}, seed {seed}", run_kind, {"settings": settings, "kind": kind, "seed": seed})
    return RecordedRun(job, seed, settings.configuration(kind))


def run_kind(stage: Stage, *, settings: PrecisionSettings, kind: str, seed: int) -> dict[str, Any]:
    """Fill, round and ask all memories of one kind: a `RunRecord` as plain data."""
    started = time.perf_counter()
    reporter = stage("recall")
    cells: dict[str, dict[str, float]] = {}
    planned = list(itertools.product(MEMORIES, PRECISIONS, WAYS, settings.loads))
    for memory, precision, way, load in planned:
        generator = torch.Generator().manual_seed(settings.loads.index(load) + 1000 * (KINDS.index(kind) + 10 * seed))
        cells[f"{memory}, {precision}, {way}, {load:g}"] = measure_cell(
            settings, kind, Cell(memory, precision, way, load), generator
        )
        reporter.update(len(cells), len(planned), {})
    ranks = {
        memory: {precision: settings.rank_of(MEMORIES[memory], PRECISIONS[precision]) for precision in PRECISIONS}
        for memory in MEMORIES
    }
    figures = {"cells": cells, "ranks": ranks, "bytes": settings.bytes}
    seconds = time.perf_counter() - started
    return dataclasses.asdict(make_record(NAME, settings.configuration(kind), figures, seed=seed, seconds=seconds))


@dataclass(frozen=True)
class Cell:
    """What is asked: names of `MEMORIES`, `PRECISIONS` and `WAYS`, and N : r."""

    memory: str
    precision: str
    way: str
    load: float


def measure_cell(settings: PrecisionSettings, kind: str, cell: Cell, generator: torch.Generator) -> dict[str, float]:
    """The share of right `accuracy`, and the `step` and `ridge` that were best on other memories.

    Of ridges that are equally good there the largest is taken, which rounding harms least.
    """
    memory, precision = MEMORIES[cell.memory], PRECISIONS[cell.precision]
    rank, pairs = settings.rank_of(memory, precision), round(cell.load * settings.rank)
    codebook = torch.nn.functional.normalize(
        torch.randn(settings.codewords, settings.head_dim, generator=generator, dtype=torch.float64), dim=-1
    )
    tuning, asked = (draw_trials(kind, settings.map_settings(), pairs, rank, generator) for _ in range(2))
    fill = functools.partial(filled, memory=memory, precision=precision, every=WAYS[cell.way], codebook=codebook)
    found: dict[tuple[float, float], float] = {}
    for step in memory.steps:
        state = fill(tuning, step)
        found |= {(step, ridge): right_answers(state, tuning, memory, ridge, codebook) for ridge in memory.ridges}
    step, ridge = max(found, key=lambda choice: (found[choice], choice[1]))
    accuracy = right_answers(fill(asked, step), asked, memory, ridge, codebook)
    return {"accuracy": float(f"{accuracy:.4g}"), "step": step, "ridge": ridge}


def filled(
    trials: Trials, step: float, *, memory: Memory, precision: Precision, every: int | None, codebook: Tensor
) -> State:
    """The state after all pairs, rounded after so many of them; None: after the last."""
    values = codebook[trials.stored]
    batch, pairs, rank = trials.keys.shape
    shapes = memory.shapes(rank, values.shape[-1])
    state: State = tuple(torch.zeros(batch, *shape, dtype=torch.float64) for shape in shapes)
    for start in range(0, pairs, every or pairs):
        segment = slice(start, start + (every or pairs))
        state = memory.write(state, trials.keys[:, segment], values[:, segment], step)
        state = tuple(precision.rounded(matrix) for matrix in state)
    return state


def right_answers(state: State, trials: Trials, memory: Memory, ridge: float, codebook: Tensor) -> float:
    """The share of right answers; none from a memory that rounding has left without a factor at this ridge."""
    solved = torch.ones(len(trials.keys), dtype=torch.bool)
    if memory.solved is not None:
        solved = memory.solved(state, ridge)
    if not solved.any():
        return 0.0
    answers = memory.read(tuple(matrix[solved] for matrix in state), trials.queries[solved], ridge)
    accuracy, _ = score(answers, trials.wanted[solved], codebook)
    return accuracy * float(solved.double().mean())
