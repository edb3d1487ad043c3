"""in-context-regression: does a trained softmax head come to predict as ridge regression does, and SKA from the start?

Regressions of dimension 8 -> 4 in noise, 24 pairs in a training sequence (`task` draws one), by one and by
two mixer layers between a linear read-in and a linear read-out (`model`): softmax attention with and without
positions, SKA, linear attention and the delta rules, at equal width, heads and rank, 1,000 steps of 32 sequences for
each. Along training, at every number of pairs from 0 to 96, the predictions' mean squared distance to those of the best
ridge regression on the same pairs. That IS the excess over the least possible error, since the best ridge prediction is
the posterior mean; beside it the distance to one step of gradient descent (what a Hebbian memory reads), and the error
itself. Every model at its best of the same three learning rates by its training loss, three seeds; under a minute a run
on one core, MesaNet's two or three. SKA with projections and ridge set by hand is measured untrained.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from echo_ska.experiments.regression.model import ARMS, BY_HAND, model_by_hand
from echo_ska.experiments.regression.results import BEYOND, CONTEXTS, MEASURED_AT, PAIRS, SEEN, along_rows, pairs_rows
from echo_ska.experiments.regression.task import InContextRegression, RegressionData
from echo_ska.experiments.trials.pool import Job, Stage
from echo_ska.experiments.trials.recorded import RecordedRun, recorded, run_missing
from echo_ska.experiments.trials.studies import print_rows, seed_count, study_files
from echo_ska.experiments.trials.trial import EVALUATION_SEED
from echo_ska.nn import SpectralKoopmanAttention
from echo_ska.training import RunRecord, TrainingConfig, make_record, train

NAME = "in-context-regression"
TASK = InContextRegression()
STEPS, QUICK_STEPS, BATCH_SIZE = 1000, 300, 32
RATES = (6e-3, 2e-2, 6e-2)
SEEDS = 3
LAYERS = (1, 2)
SEQUENCES = 512


@dataclass(frozen=True)
class RegressionRun:
    """One training, or with `BY_HAND` and no steps none.

    Attributes:
        arm: a name in `ARMS`, or `BY_HAND`.
        layers: mixers, one after the other.
        learning_rate: the peak.
        seed: of weights and batches.
        steps: of training.
        sequences: that are measured.
    """

    arm: str
    layers: int
    learning_rate: float
    seed: int = 0
    steps: int = STEPS
    sequences: int = SEQUENCES

    def data(self) -> RegressionData:
        """The training batches."""
        return RegressionData(TASK, PAIRS, BATCH_SIZE, self.seed)

    def training_config(self) -> TrainingConfig:
        """On the CPU: so small a model gains nothing from a GPU. No weight decay: no batch comes twice."""
        return TrainingConfig(
            steps=self.steps,
            learning_rate=self.learning_rate,
            final_learning_rate_fraction=0.0,
            weight_decay=0.0,
            seed=self.seed,
            device="cpu",
            log_every=min(100, self.steps),
            evaluate_every=10,
        )

    def configuration(self) -> dict[str, Any]:
        """What its record has as configuration, known without running it, in the types that JSON gives."""
        trained = self.steps > 0
        parts = {
            "arm": self.arm,
            "layers": self.layers,
            "model": ARMS[self.arm].describe() if trained else None,
            "training": dataclasses.asdict(self.training_config()) if trained else None,
            "data": self.data().describe(),
            "measured": {"sequences": self.sequences, "pairs": CONTEXTS[-1], "seed": EVALUATION_SEED},
        }
        as_json: dict[str, Any] = json.loads(json.dumps(parts))
        return as_json

    def recorded_run(self) -> RecordedRun:
        """As a job whose record can be found again."""
        depth = f"{self.layers} layer{'s' * (self.layers > 1)}"
        name = f"{self.arm}, {depth}, rate {self.learning_rate:g}, seed {self.seed}"
        return RecordedRun(Job(name, run_regression, {"run": self}), self.seed, self.configuration())


BY_HAND_RUN = RegressionRun(BY_HAND, layers=1, learning_rate=0.0, steps=0)


def run_regression(stage: Stage, *, run: RegressionRun) -> dict[str, Any]:
    """Train and measure one model: a `RunRecord` as plain data. A training that diverges has a loss of null."""
    started = time.perf_counter()
    figures: dict[str, Any] = {"arm": run.arm, "layers": run.layers, "learning_rate": run.learning_rate}
    if run.steps == 0:
        figures |= {"measured": {"0": measure(model_by_hand(TASK), run.sequences)}, "known": known(run.sequences)}
    else:
        model = ARMS[run.arm].build(TASK, run.layers, run.seed)
        measured = {"0": measure(model.eval(), run.sequences)}

        def evaluate(model: nn.Module, step: int) -> dict[str, Any]:
            if step in MEASURED_AT or step == run.steps:
                measured[str(step)] = measure(model, run.sequences)
            return {}

        loss = None
        try:
            training = train(model, run.data(), run.training_config(), evaluate=evaluate, reporter=stage("training"))
            loss = training.figures["loss"]
        except FloatingPointError as error:
            figures["diverged"] = str(error)
        ridges = [layer.ridge.tolist() for layer in model.layers if isinstance(layer, SpectralKoopmanAttention)]
        parameters = sum(parameter.numel() for parameter in model.parameters())
        figures |= {"training_loss": loss, "measured": measured, "ridges": ridges, "parameters": parameters}
    seconds = time.perf_counter() - started
    return dataclasses.asdict(make_record(NAME, run.configuration(), figures, seed=run.seed, seconds=seconds))


@dataclass(frozen=True)
class Questions:
    """What is measured on: tokens, answers and what the two algorithms predict, float64 but for the tokens."""

    tokens: Tensor
    answers: Tensor
    ridge: Tensor
    hebbian: Tensor


@functools.cache
def questions(sequences: int) -> Questions:
    """The same for every model."""
    drawn = TASK.sample(sequences, CONTEXTS[-1], torch.Generator().manual_seed(EVALUATION_SEED))
    ridge, hebbian = TASK.ridge_predictions(drawn), TASK.hebbian_predictions(drawn)
    return Questions(drawn.tokens(), drawn.answers.double(), ridge, hebbian)


@torch.no_grad()
def measure(model: nn.Module, sequences: int) -> dict[str, dict[str, float]]:
    """Mean squares over sequences and outputs, by pairs seen: `ridge` and `hebbian` distance, `error` of the answers.

    Returns:
        By quantity, by a number of `CONTEXTS`, `SEEN` or `BEYOND`.
    """
    asked = questions(sequences)
    predictions = model(asked.tokens).predictions.double()
    targets = {"ridge": asked.ridge, "hebbian": asked.hebbian, "error": asked.answers}
    return {name: _by_pairs(predictions - target) for name, target in targets.items()}


def known(sequences: int) -> dict[str, dict[str, float]]:
    """The errors of the two algorithms themselves, and the distance between them; as `measure` gives them."""
    asked = questions(sequences)
    return {
        "ridge error": _by_pairs(asked.ridge - asked.answers),
        "hebbian error": _by_pairs(asked.hebbian - asked.answers),
        "distance": _by_pairs(asked.hebbian - asked.ridge),
    }


def _by_pairs(differences: Tensor) -> dict[str, float]:
    squares = differences.square().mean(dim=(0, 2))  # [pairs + 1]
    by_pairs = {str(pairs): squares[pairs] for pairs in CONTEXTS}
    by_pairs |= {SEEN: squares[1 : PAIRS + 1].mean(), BEYOND: squares[PAIRS + 1 :].mean()}
    return {name: float(f"{float(value):.4g}") for name, value in by_pairs.items()}


def run(console: Console, *, seeds: int | None = None, quick: bool = False) -> list[RunRecord]:
    """Run what is not recorded, print the tables and draw the picture.

    `quick` takes one seed, one rate, one layer and 300 steps, in files of its own.

    Raises:
        ValueError: `seeds` is below 1, or the records cannot be read.
        JobError: a run failed; those that ended before it are recorded.
    """
    from echo_ska.experiments.regression.figure import draw  # matplotlib, which jobs do without

    count = seed_count(seeds, 1 if quick else SEEDS)
    path, picture = study_files(NAME, quick)
    tried = [candidate for candidates in tries(quick).values() for candidate in candidates]
    run_missing(console, NAME, [one.recorded_run() for one in [*tried, BY_HAND_RUN]], path)
    runs = [dataclasses.replace(best, seed=s) for best in _best(path, quick).values() for s in range(count)]
    run_missing(console, NAME, [one.recorded_run() for one in runs], path)
    results = recorded_results(path, count, quick)
    print_rows(console, "Distance to ridge regression along training, mean over seeds (highest)", along_rows(results))
    print_rows(console, "After training, by pairs in context", pairs_rows(results))
    draw(results, picture)
    return [record for records in results.values() for record in records]


def tries(quick: bool = False) -> dict[tuple[str, int], list[RegressionRun]]:
    """By arm and layers, seed 0 at every rate; two layers first, which take longest."""
    depths, rates, steps = ((1,), RATES[1:2], QUICK_STEPS) if quick else (LAYERS[::-1], RATES, STEPS)
    return {
        (arm, layers): [RegressionRun(arm, layers, rate, steps=steps) for rate in rates]
        for layers in depths
        for arm in ARMS
    }


def _best(path: Path, quick: bool) -> dict[tuple[str, int], RegressionRun]:
    """By arm and layers, the try of the lowest training loss; nothing where one is not recorded."""
    best = {}
    for key, candidates in tries(quick).items():
        records = recorded(NAME, [one.recorded_run() for one in candidates], path)
        losses = [math.inf if r is None else _loss(r) for r in records]
        if None not in records:
            best[key] = candidates[losses.index(min(losses))]
    return best


def recorded_results(path: Path, seeds: int = SEEDS, quick: bool = False) -> dict[tuple[str, int], list[RunRecord]]:
    """What is recorded: by arm and layers the seeds at the best rate, and the model set by hand."""
    results = {}
    for key, best in _best(path, quick).items():
        runs = [dataclasses.replace(best, seed=seed).recorded_run() for seed in range(seeds)]
        found = [record for record in recorded(NAME, runs, path) if record is not None]
        if found:
            results[key] = found
    by_hand = recorded(NAME, [BY_HAND_RUN.recorded_run()], path)[0]
    ordered: dict[tuple[str, int], list[RunRecord]] = {} if by_hand is None else {(BY_HAND, 1): [by_hand]}
    return ordered | {
        (arm, layers): results[arm, layers] for layers in LAYERS for arm in ARMS if (arm, layers) in results
    }


def _loss(record: RunRecord) -> float:
    loss = record.figures["training_loss"]
    return math.inf if loss is None else float(loss)
