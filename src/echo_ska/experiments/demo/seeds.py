"""demo-seeds: does the demo's SSM+SKA learn from every seed, and up to which length does it still answer?

Trained in 64 tokens, asked in up to 1,048,576, for each seed. About five minutes a seed on one core, nearly all of it
reading the longest sequences. A record a seed goes to results/demo-seeds.jsonl as soon as that seed is done; a seed
that is recorded there for the same settings is not run again.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from echo_ska.experiments.demo.recall import (
    EVALUATION_SEED,
    SEGMENT_LENGTH,
    TASK,
    RecallModel,
    measure_recall,
    recall_configuration,
    recall_model,
    train_recall_model,
)
from echo_ska.experiments.trials.figures import COLOURS, label_lines, length_axis, percent, save, short_number
from echo_ska.experiments.trials.pool import Job, Stage
from echo_ska.experiments.trials.recorded import RecordedRun, run_missing
from echo_ska.experiments.trials.studies import study_files
from echo_ska.training import RunRecord, make_record

NAME = "demo-seeds"

SEEDS, QUICK_SEEDS = 10, 2
LONGEST, QUICK_LONGEST = 1_048_576, 65_536
TOKENS_A_LENGTH = 262_144
MINIMUM_SEQUENCES = 2
"""Each length is asked in TOKENS_A_LENGTH tokens, or in MINIMUM_SEQUENCES sequences (of 8 answers) if that is more."""

ENOUGH = 0.99


@dataclasses.dataclass(frozen=True)
class SeedSettings:
    """What is run for each seed.

    Attributes:
        model: what is trained.
        sequences: how many sequences are asked, by length.
    """

    model: RecallModel
    sequences: dict[int, int]

    def configuration(self, seed: int) -> dict[str, Any]:
        """What a record of `seed` has as its configuration, in the types that JSON gives."""
        asked = {str(length): count for length, count in self.sequences.items()}
        evaluation = {"sequences": asked, "seed": EVALUATION_SEED, "segment_length": SEGMENT_LENGTH}
        return recall_configuration(self.model, seed) | {"evaluation": evaluation}


def run(console: Console, *, seeds: int | None = None, quick: bool = False) -> list[RunRecord]:
    """Run the seeds 0 ... `seeds` - 1 that are not recorded, then print the table and draw results/demo-seeds.png.

    `quick` takes 2 seeds and lengths up to 65,536, in files of their own (demo-seeds-quick.*).

    Raises:
        ValueError: `seeds` is below 1, or the records cannot be read.
        JobError: a seed failed; those that ended before it are recorded.
    """
    count = (QUICK_SEEDS if quick else SEEDS) if seeds is None else seeds
    longest = QUICK_LONGEST if quick else LONGEST
    settings = SeedSettings(recall_model("ssm+ska"), sequences_by_length(longest))
    path, picture = study_files(NAME, quick)
    records = run_seeds(console, settings, count, path)
    print_table(console, records)
    draw(records, picture)
    console.print(f"Records: {path}, picture: {picture}", markup=False, highlight=False, soft_wrap=True)
    return records


def sequences_by_length(longest: int) -> dict[int, int]:
    """How many sequences to ask at 1, 4, 16, ... times the training length, up to `longest` tokens."""
    sequences, length = {}, TASK.length
    while length <= longest:
        sequences[length] = max(MINIMUM_SEQUENCES, TOKENS_A_LENGTH // length)
        length *= 4
    return sequences


def run_seeds(console: Console, settings: SeedSettings, seeds: int, path: Path) -> list[RunRecord]:
    """Run the seeds that `path` has no record of for these settings; returns the records of all, by seed."""
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}.")
    runs = [
        RecordedRun(
            Job(f"seed {seed}", run_seed, {"settings": settings, "seed": seed}), seed, settings.configuration(seed)
        )
        for seed in range(seeds)
    ]
    return run_missing(console, NAME, runs, path)


def run_seed(stage: Stage, *, settings: SeedSettings, seed: int) -> dict[str, Any]:
    """Train and ask the model of one seed: a `RunRecord` as plain data."""
    started = time.perf_counter()
    network, training = train_recall_model(settings.model, seed, stage("training"))
    accuracy = measure_recall(network, settings.sequences, stage("recall"))
    figures = {
        "accuracy": {str(length): value for length, value in accuracy.items()},
        "answers": {str(length): TASK.pairs * count for length, count in settings.sequences.items()},
        "longest_at_99_percent": longest_at(accuracy, ENOUGH),
        "parameters": training.figures["parameters"],
        "training_loss": training.figures["loss"],
        "training_seconds": training.seconds,
    }
    seconds = time.perf_counter() - started
    return dataclasses.asdict(make_record(NAME, settings.configuration(seed), figures, seed=seed, seconds=seconds))


def longest_at(accuracy: dict[int, float], enough: float) -> int | None:
    """The longest length with at least `enough` there and at every shorter one; None if there is none."""
    longest = None
    for length in sorted(accuracy):
        if accuracy[length] < enough:
            break
        longest = length
    return longest


def print_table(console: Console, records: Sequence[RunRecord]) -> None:
    """Accuracy by seed and length, and how many answers are behind each."""
    lengths = list(records[0].figures["accuracy"])
    table = Table(title=f"Accuracy, %, after training on {TASK.length} tokens, by tokens in the sequence")
    for name in ("seed", *(short_number(int(length)) for length in lengths), "99 % up to"):
        table.add_column(name, justify="right")
    for record in records:
        longest = record.figures["longest_at_99_percent"]
        cells = [percent(record.figures["accuracy"][length]) for length in lengths]
        table.add_row(str(record.seed), *cells, "-" if longest is None else short_number(longest))
    table.add_section()
    lowest = [min(record.figures["accuracy"][length] for record in records) for length in lengths]
    table.add_row("lowest", *(percent(value) for value in lowest), "")
    answers = records[0].figures["answers"]
    table.add_row("answers", *(f"{answers[length]:,}" for length in lengths), "", style="dim")
    console.print(table)


def draw(records: Sequence[RunRecord], path: Path) -> None:
    """Accuracy against length: every seed thin, the median and the lowest of all thick."""
    keys = list(records[0].figures["accuracy"])
    lengths = [int(key) for key in keys]
    curves = [[100 * record.figures["accuracy"][key] for key in keys] for record in records]
    lines = {
        "median": [statistics.median(values) for values in zip(*curves, strict=True)],
        "lowest seed": [min(values) for values in zip(*curves, strict=True)],
    }
    colours = {"median": COLOURS["ssm+ska"], "lowest seed": COLOURS["ssm+attention"]}
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for curve in curves:
        axes.plot(lengths, curve, color=COLOURS["ssm+ska"], linewidth=1, alpha=0.35)
    for name, line in lines.items():
        axes.plot(lengths, line, color=colours[name], linewidth=2, marker="o", markersize=5, clip_on=False)
    length_axis(axes, lengths)
    axes.set_xlim(lengths[0], lengths[-1])
    lowest = min(lines["lowest seed"])
    # From the nearest step below the lowest value, so that differences near 100 % can be seen.
    axes.set_ylim(max(0, 5 * (lowest // 5) - (5 if lowest % 5 < 1 else 0)), 100)
    axes.axhline(100 * ENOUGH, color="black", linewidth=1, linestyle=(0, (4, 3)))
    place: dict[str, Any] = {"xytext": (4, -11), "textcoords": "offset points"}
    axes.annotate(f"{100 * ENOUGH:g} %", (lengths[0], 100 * ENOUGH), fontsize=9, **place)
    axes.set_title(f"Answers right, %, {len(records)} seeds trained on {TASK.length} tokens", loc="left", fontsize=11)
    figure.draw_without_rendering()  # settles the axes' place, which the labels need
    label_lines(axes, {name: (lengths[-1], line[-1]) for name, line in lines.items()}, colours)
    save(figure, path)
