"""`echo-ska recall-text`: facts hidden in prose, asked for at several lengths."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from echo_ska.commands.load import load_model, load_tokenizer, require_model_folder, require_state
from echo_ska.commands.screen import screen
from echo_ska.evaluation.babilong import load_babi
from echo_ska.evaluation.hidden_text import Prose, TextTask
from echo_ska.evaluation.memory_plot import format_bytes
from echo_ska.evaluation.needle import needle_tasks
from echo_ska.evaluation.text_recall import TextRecall, questions_asked, require_fit, text_recall, token_counter
from echo_ska.training.books import book_path
from echo_ska.training.records import make_record, write_json


@dataclass(frozen=True)
class RecallTextRequest:
    """What was asked for; the options of `echo-ska recall-text`, which documents them."""

    model: Path
    task: str
    variants: str
    lengths: str
    data: Path | None
    haystack: Path | None
    samples: int
    seed: int
    device: str


def recall_text(request: RecallTextRequest, json_file: Path | None, console: Console) -> None:
    """Ask, print a table and write its figures as a run record.

    Raises:
        ValueError: a model, a file or a setting is not as it must be; says what to do.
    """
    require_model_folder(request.model)
    lengths = _lengths(request.lengths)
    tasks = _tasks(request)
    prose = Prose([book_path("unseen") if request.haystack is None else request.haystack])
    model = load_model(request.model, request.device)
    require_state(model, request.model)
    tokenizer = load_tokenizer(request.model, model.config.vocab_size)
    measure = token_counter(tokenizer)
    shortest = min((length for length in lengths if length), default=None)
    if shortest is not None:  # all lengths ask about the same stories
        tasks = [task.limited_to(shortest, measure) for task in tasks]
        for task in tasks:  # before any is asked: a refusal later would lose what was measured
            require_fit(task, shortest, request.samples, request.seed, measure)

    began = time.perf_counter()
    found: list[TextRecall] = []
    with _progress() as bar:
        total = len(lengths) * sum(questions_asked(task, request.samples) for task in tasks)
        row = bar.add_task("", total=total, doing="")
        for task in tasks:
            for length in lengths:
                bar.update(row, doing=f"{task.name}, {_length(length)}")
                result = text_recall(
                    model,
                    tokenizer,
                    task,
                    prose,
                    length,
                    request.samples,
                    request.seed,
                    measure=measure,
                    progress=lambda tokens: bar.advance(row),
                )
                found.append(result)
    console.print(_table(found))
    for name, count in {result.task: result.samples for result in found if result.samples < request.samples}.items():
        console.print(f"{name} has {count} {'story' if count == 1 else 'stories'} that fit: each was asked once.")
    record = make_record(
        f"recall-text-{request.task}",
        dataclasses.asdict(request),
        {"results": [dataclasses.asdict(result) for result in found]},
        seed=request.seed,
        seconds=time.perf_counter() - began,
    )
    write_json(json_file, dataclasses.asdict(record))


def _lengths(given: str) -> list[int]:
    try:
        lengths = [int(part) for part in given.split(",")]
    except ValueError:
        lengths = [-1]
    if min(lengths) < 0:
        raise ValueError(f"--lengths takes whole numbers of at least 0 with commas between them, got {given!r}.")
    return list(dict.fromkeys(lengths))


def _tasks(request: RecallTextRequest) -> Sequence[TextTask]:
    variants = [name.strip() for name in request.variants.split(",") if name.strip()]
    if request.task == "babilong":
        return load_babi(request.data, variants)
    if request.task != "needle":
        raise ValueError(f"There is no task {request.task!r}: choose from babilong, needle.")
    if request.data is not None:
        raise ValueError("--data is for babilong: needles are made up.")
    return needle_tasks(variants)


def _progress() -> Progress:
    """A bar on standard error, which goes at the end; none where no terminal is."""
    console = screen(stderr=True)
    return Progress(
        TextColumn("{task.fields[doing]}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _table(found: Sequence[TextRecall]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("task", no_wrap=True)
    for heading in ("tokens", "asked", "read", "accuracy", "± error", "chance", "state", "s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in found:
        table.add_row(
            result.task,
            _length(result.length),
            f"{result.samples:,}",
            f"{result.tokens:,.0f}",
            f"{result.accuracy:.1%}",
            "" if result.standard_error is None else f"{result.standard_error:.1%}",
            f"{result.chance:.1%}",
            format_bytes(result.state_bytes),
            f"{result.seconds:.1f}",
        )
    return table


def _length(length: int) -> str:
    return f"{length:,}" if length else "no prose"
