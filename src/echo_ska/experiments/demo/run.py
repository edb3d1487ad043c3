"""`echo-ska demo`: the memory cliff and its absence, measured in minutes on two cores.

Five jobs side by side: four models of equal size and budget learn multi-query recall in 64 tokens and are asked in up
to 4,096 (`experiments.recall`), and a small byte-level Echo learns from one book and reads another
(`experiments.text`). Then a table, a picture and, if asked for, a JSON file.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from echo_ska.experiments.demo import report as demo_report
from echo_ska.experiments.demo.recall import (
    EVALUATION_SEED,
    RECALL_MODELS,
    TASK,
    RecallModel,
    measure_recall,
    measure_state_bytes,
    train_recall_model,
)
from echo_ska.experiments.demo.text import TextModel, run_text_part
from echo_ska.experiments.trials.arms import NO_POSITIONS
from echo_ska.experiments.trials.pool import Job, Stage, run_jobs
from echo_ska.training.records import (
    checkout_state,
    describe_hardware,
    describe_versions,
    standard_stream,
    usable_cores,
    write_json,
)

MINIMUM_SEQUENCES = 64
TOKENS_A_LENGTH = 65_536

START_ORDER = ("ssm+ska", "ssm+attention", NO_POSITIONS, "ssm", "text")
"""Longest first, as timed on one core, so that two cores end at about the same time."""


@dataclass(frozen=True)
class DemoSettings:
    """What the demo runs; tests make it smaller.

    Attributes:
        models: the recall models.
        text: the text part.
        doublings: lengths go from the training length to 2^doublings times it.
        minimum_sequences, tokens_a_length: each length is asked in `tokens_a_length` tokens, or in
            `minimum_sequences` sequences where that is more.
        seed: of the recall models.
    """

    models: tuple[RecallModel, ...] = RECALL_MODELS
    text: TextModel = field(default_factory=TextModel)
    doublings: int = 6
    minimum_sequences: int = MINIMUM_SEQUENCES
    tokens_a_length: int = TOKENS_A_LENGTH
    seed: int = 0

    def sequences(self) -> dict[int, int]:
        """How many sequences are asked, by length."""
        lengths = [TASK.length * 2**k for k in range(self.doublings + 1)]
        return {length: max(self.minimum_sequences, self.tokens_a_length // length) for length in lengths}

    def describe(self) -> dict[str, Any]:
        """For the JSON file."""
        described = asdict(self)
        for model in described["models"]:
            model["changes"] = [change.__name__ for change in model["changes"]]
        return described


def run_demo(
    *, output: Path, json_path: Path | None, console: Console, settings: DemoSettings | None = None
) -> dict[str, Any]:
    """Train and measure all five models, print what came out, and draw it.

    Args:
        output: folder for `recall.png`; made if it does not exist.
        json_path: file for the figures, replaced in one step; None writes none.
        console: where to print.
        settings: None is the demo.

    Returns:
        What the JSON file holds: `seconds`; `models`, each with `name`, `parameters`, `accuracy` (0 to 1) and
        `state_bytes` by length; `text` with `bits_per_byte_before`, `bits_per_byte_after`, `state_bytes`; and how it
        was measured.

    Raises:
        ValueError: the output cannot be written; said before anything is trained.
        JobError: a job failed.
    """
    settings = settings or DemoSettings()
    _require_writable(output, json_path)
    started = time.perf_counter()
    jobs = {
        model.name: Job(
            model.name, run_recall_part, {"model": model, "sequences": settings.sequences(), "seed": settings.seed}
        )
        for model in settings.models
    }
    jobs["text"] = Job("text", run_text_part, {"model": settings.text})
    ordered = sorted(jobs.values(), key=lambda job: START_ORDER.index(job.name) if job.name in START_ORDER else -1)
    demo_report.print_start(console, len(jobs), usable_cores())
    outcomes = run_jobs(ordered, console)
    commit, dirty = checkout_state()
    result: dict[str, Any] = {
        "seconds": time.perf_counter() - started,
        "models": [outcomes[model.name] for model in settings.models],
        "text": outcomes["text"],
        "chance": TASK.chance,
        "training_length": TASK.length,
        "answers": {str(length): TASK.pairs * count for length, count in settings.sequences().items()},
        "settings": settings.describe() | {"task": asdict(TASK), "evaluation_seed": EVALUATION_SEED},
        "hardware": describe_hardware(),
        "versions": describe_versions(),
        "commit": commit,
        "dirty": dirty,
    }
    demo_report.print_report(console, result)
    picture = output / "recall.png"
    demo_report.draw(result, picture)
    console.print(f"Picture: {picture}", markup=False, highlight=False, soft_wrap=True)
    write_json(json_path, result)
    if json_path is not None and standard_stream(json_path) is None:
        console.print(f"Figures: {json_path}", markup=False, highlight=False, soft_wrap=True)
    return result


def run_recall_part(stage: Stage, *, model: RecallModel, sequences: dict[int, int], seed: int) -> dict[str, Any]:
    """Train one model and measure it: plain data, as in the JSON file's `models`, lengths as text."""
    network, record = train_recall_model(model, seed, stage("training"))
    accuracy = measure_recall(network, sequences, stage("recall"))
    state_bytes = measure_state_bytes(network, list(sequences))
    return {
        "name": model.name,
        "parameters": record.figures["parameters"],
        "accuracy": {str(length): accuracy[length] for length in sequences},
        "state_bytes": {str(length): state_bytes[length] for length in sequences},
        "steps": model.steps,
        "learning_rate": model.learning_rate,
        "training_loss": record.figures["loss"],
        "training_seconds": record.seconds,
    }


def _require_writable(output: Path, json_path: Path | None) -> None:
    if json_path is not None and json_path.is_dir():
        raise ValueError(f"{json_path} is a folder: give --json the name of a file.")
    folders = [output]
    if json_path is not None and standard_stream(json_path) is None and (json_path.is_file() or not json_path.exists()):
        folders.append(json_path.resolve().parent)  # else it is written to as it is
    for folder in folders:
        probe = folder / ".echo-ska.partial"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ValueError(f"Nothing can be written in {folder}: {error.strerror}.") from error
