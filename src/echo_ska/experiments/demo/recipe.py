"""recipe: what each part of the recipe is worth. One is taken away at a time from the demo's SSM+SKA.

Same task, learning rate and batches, half the demo's steps, two seeds. About one minute a run on one core.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from echo_ska.experiments.demo.recall import (
    STEPS,
    TASK,
    measure_recall,
    recall_configuration,
    recall_model,
)
from echo_ska.experiments.trials import changes
from echo_ska.experiments.trials.figures import percent
from echo_ska.experiments.trials.pool import Job, Stage
from echo_ska.experiments.trials.recorded import RecordedRun, run_missing
from echo_ska.training import RunRecord, make_record, train

NAME = "recipe"
SEEDS = 2
MODEL = dataclasses.replace(recall_model("ssm+ska"), steps=STEPS // 2)
SEQUENCES = {TASK.length: 1024, 64 * TASK.length: 32, 1024 * TASK.length: 2}

CHANGES: dict[str, changes.Change | None] = {
    "the recipe": None,
    "W_q started apart from W_k": changes.own_queries,
    "keys not delayed": changes.no_delay,
    "gate a plain sigmoid": changes.plain_sigmoid,
    "no write gate": changes.no_gate,
    "gate dropout of a fifth added": changes.gate_dropout,
    "ridge fixed at 1e-3": changes.paper_ridge,
    "no output norm": changes.no_output_norm,
    "power 2 without a blend": changes.no_blend,
    "power 0 (ridge regression alone)": changes.ridge_alone,
    "tokens start 50 times smaller": changes.small_tokens,
    "residual branches start unscaled": changes.full_branches,
}
"""What is taken away, or added, and how from a freshly built network."""


def run(console: Console, *, seeds: int | None = None, quick: bool = False) -> list[RunRecord]:
    """Run what results/recipe.jsonl has no record of, then print the table. `quick` takes one seed."""
    count = (1 if quick else SEEDS) if seeds is None else seeds
    runs = [change_run(change, seed) for seed in range(count) for change in CHANGES]
    records = run_missing(console, NAME, runs, Path("results") / f"{NAME}.jsonl")
    table = Table(title=f"Accuracy, %, of each seed after {MODEL.steps} steps on {TASK.length} tokens")
    rows = table_rows(records)
    for name in rows[0]:
        table.add_column(name, justify="left" if name == rows[0][0] else "right")
    for row in rows[1:]:
        table.add_row(*row)
    console.print(table)
    return records


def change_run(change: str, seed: int) -> RecordedRun:
    """The run of one change and seed."""
    job = Job(f"{change}, seed {seed}", run_change, {"change": change, "seed": seed})
    return RecordedRun(job, seed, _configuration(change, seed))


def run_change(stage: Stage, *, change: str, seed: int) -> dict[str, Any]:
    """Train and ask one changed model: a `RunRecord` as plain data."""
    started = time.perf_counter()
    network = MODEL.build(seed)
    if (apply := CHANGES[change]) is not None:
        apply(network)
    config = MODEL.training_config(seed)
    training = train(network, MODEL.data(seed), config, reporter=stage("training"), name=change)
    accuracy = measure_recall(network.eval(), SEQUENCES, stage("recall"))
    figures = {
        "change": change,
        "training_loss": training.figures["loss"],
        "accuracy": {str(length): value for length, value in accuracy.items()},
    }
    seconds = time.perf_counter() - started
    return dataclasses.asdict(make_record(NAME, _configuration(change, seed), figures, seed=seed, seconds=seconds))


def table_rows(records: list[RunRecord]) -> list[list[str]]:
    """A header and a row a change: the accuracies of all seeds at each length, lowest first."""
    rows = [["changed", *(f"at {length:,}" for length in SEQUENCES)]]
    for change in CHANGES:
        of_change = [record.figures["accuracy"] for record in records if record.figures["change"] == change]
        if of_change:
            cells = [sorted(accuracy[str(length)] for accuracy in of_change) for length in SEQUENCES]
            rows.append([change, *(", ".join(percent(value) for value in values) for values in cells)])
    return rows


def _configuration(change: str, seed: int) -> dict[str, Any]:
    asked = {str(length): count for length, count in SEQUENCES.items()}
    return recall_configuration(MODEL, seed) | {"change": change, "sequences": asked}
