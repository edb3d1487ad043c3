"""`echo-ska eval`: the tasks of lm-evaluation-harness, from the net or from local files."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from echo_ska.commands.files import require_apart
from echo_ska.commands.load import load_model, load_tokenizer, require_model_folder
from echo_ska.evaluation.harness import Harness, require_harness
from echo_ska.evaluation.local_tasks import LOCAL_TASKS, prepare
from echo_ska.training.records import write_json


@dataclass(frozen=True)
class EvaluateRequest:
    """What was asked for; the options of `echo-ska eval`, which documents them."""

    model: Path
    tasks: str
    data: Path | None
    limit: int | None
    batch_size: int
    device: str


def evaluate(request: EvaluateRequest, json_file: Path | None, console: Console) -> None:
    """Ask, print a table and write its figures.

    Raises:
        ValueError: the harness, a model, a task or its data are missing; says what to do.
    """
    require_harness()
    names = list(dict.fromkeys(name.strip() for name in request.tasks.split(",") if name.strip()))
    if not names:
        raise ValueError("--tasks names no task: give names with commas between them.")
    local = [name for name in names if name in LOCAL_TASKS]
    if local and request.data is None:
        raise ValueError(f"{', '.join(local)} asks from local files: give their folder by --data FOLDER.")
    if request.data is not None and not local:
        raise ValueError(f"--data is for {', '.join(LOCAL_TASKS)}: the harness's own tasks download theirs.")
    files = [file for name in local for file in LOCAL_TASKS[name].files]
    asked = [pattern for file in files for pattern in (file, f"{file}.bz2", f"*/{file}", f"*/{file}.bz2")]
    require_apart(request.data, json_file, "--data", files=asked)
    require_model_folder(request.model)
    with tempfile.TemporaryDirectory() as work:
        prepared = prepare(local, request.data, Path(work)) if request.data is not None else []
        began = time.perf_counter()
        harness = Harness([*(name for name in names if name not in LOCAL_TASKS), *prepared])
        model = load_model(request.model, request.device)
        tokenizer = load_tokenizer(request.model, model.config.vocab_size)
        scores = harness.ask(model, tokenizer, limit=request.limit, batch_size=request.batch_size)
        seconds = time.perf_counter() - began
    console.print(_table(scores))
    figures = {"model": str(request.model), "limit": request.limit, "seconds": seconds, "tasks": scores}
    write_json(json_file, figures)


def _table(scores: dict[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("task", "metric"):
        table.add_column(heading, no_wrap=True)
    for heading in ("value", "± error", "questions"):
        table.add_column(heading, justify="right", no_wrap=True)
    for task, score in scores.items():
        for metric, figure in score["metrics"].items():
            error = figure["standard_error"]
            asked = score["questions"]
            table.add_row(
                task,
                metric,
                _number(figure["value"]),
                "" if error is None else _number(error),
                "" if asked is None else f"{asked:,}",
            )
    return table


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.4g}"  # the perplexity of an untrained model is huge
