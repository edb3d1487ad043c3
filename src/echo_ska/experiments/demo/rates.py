"""demo-rates: the demo's four models, and its SSM as published, at four learning rates each.

Same task, steps and batches for all; one seed, which is none of the demo's, and other sequences than the demo asks.
About two minutes a run on one core.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from echo_ska.experiments.demo.recall import (
    RECALL_MODELS,
    TASK,
    RecallModel,
    measure_recall,
    recall_configuration,
    recall_model,
    train_recall_model,
)
from echo_ska.experiments.trials.figures import percent
from echo_ska.experiments.trials.pool import Job, Stage
from echo_ska.experiments.trials.recorded import RecordedRun, run_missing
from echo_ska.experiments.trials.trial import TUNING_SEED
from echo_ska.training import RunRecord, make_record

NAME = "demo-rates"
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
QUICK_RATES = (3e-3, 1e-2)
PUBLISHED = dataclasses.replace(recall_model("ssm"), name="ssm, as published", changes=())
FIRST_SEED = 1000
"""What chooses a rate is no run that is reported: the demo's seeds count from 0."""
SEQUENCES = {TASK.length: 1024, 64 * TASK.length: 64}


def run(console: Console, *, seeds: int | None = None, quick: bool = False) -> list[RunRecord]:
    """Run what results/demo-rates.jsonl has no record of, then print the table. `quick` takes two of the rates."""
    rates = QUICK_RATES if quick else RATES
    models = [dataclasses.replace(model, learning_rate=rate) for model in (*RECALL_MODELS, PUBLISHED) for rate in rates]
    runs = [rate_run(model, seed) for seed in range(FIRST_SEED, FIRST_SEED + (seeds or 1)) for model in models]
    records = run_missing(console, NAME, runs, Path("results") / f"{NAME}.jsonl")
    print_table(console, records)
    return records


def rate_run(model: RecallModel, seed: int) -> RecordedRun:
    """The run of one model at its learning rate."""
    job = Job(f"{model.name} {model.learning_rate:g} seed {seed}", run_rate, {"model": model, "seed": seed})
    return RecordedRun(job, seed, _configuration(model, seed))


def _configuration(model: RecallModel, seed: int) -> dict[str, Any]:
    asked = {str(length): count for length, count in SEQUENCES.items()}
    return recall_configuration(model, seed) | {"evaluation": {"sequences": asked, "seed": TUNING_SEED}}


def run_rate(stage: Stage, *, model: RecallModel, seed: int) -> dict[str, Any]:
    """Train and ask one model: a `RunRecord` as plain data."""
    started = time.perf_counter()
    network, training = train_recall_model(model, seed, stage("training"))
    accuracy = measure_recall(network, SEQUENCES, stage("recall"), TUNING_SEED)
    figures = {
        "model": model.name,
        "learning_rate": model.learning_rate,
        "parameters": training.figures["parameters"],
        "training_loss": training.figures["loss"],
        "accuracy": {str(length): value for length, value in accuracy.items()},
    }
    seconds = time.perf_counter() - started
    return dataclasses.asdict(make_record(NAME, _configuration(model, seed), figures, seed=seed, seconds=seconds))


def print_table(console: Console, records: list[RunRecord]) -> None:
    """Accuracy by model and rate, at the training length and at 64 times it."""
    table = Table(title=f"Accuracy, %, after training on {TASK.length} tokens, by learning rate")
    for name in ("model", "learning rate", "seed", *(f"at {length:,}" for length in SEQUENCES), "training loss"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for record in records:
        figures = record.figures
        accuracies = [percent(figures["accuracy"][str(length)]) for length in SEQUENCES]
        table.add_row(
            figures["model"],
            f"{figures['learning_rate']:g}",
            str(record.seed),
            *accuracies,
            f"{figures['training_loss']:.4f}",
        )
    console.print(table)
