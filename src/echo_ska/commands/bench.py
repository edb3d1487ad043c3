"""`echo-ska bench`: run the benchmark, print its tables, keep its record, draw its picture."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from echo_ska.benchmarks.plan import Plan
from echo_ska.benchmarks.run import NAME, run_benchmark
from echo_ska.benchmarks.summary import TABLES, machine, picture_name, rows_of
from echo_ska.experiments.benchmark_figure import draw
from echo_ska.training import RunRecord
from echo_ska.training.records import append, usable_cores, write_json
from echo_ska.training.reporter import format_seconds


@dataclass(frozen=True)
class BenchRequest:
    """What was asked for on the command line; None keeps the plan's own."""

    lengths: str | None = None
    routes: str | None = None
    parts: str | None = None
    threads: int | None = None
    rounds: int | None = None
    decode_tokens: int | None = None
    device: str = "auto"
    quick: bool = False

    def plan(self) -> Plan:
        """The plan that follows from it.

        Raises:
            ValueError: an option cannot be understood.
        """
        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        threads = usable_cores() if self.threads is None else self.threads
        plan = Plan.quick(device, threads) if self.quick else Plan.full(device, threads)
        asked: dict[str, object] = {}
        if self.lengths is not None:
            lengths = _numbers("--lengths", self.lengths)
            asked |= {"lengths": lengths, "memory_lengths": lengths, "layer_lengths": lengths}
        if self.routes is not None:
            asked["routes"] = _names(self.routes)
        if self.parts is not None:
            asked["parts"] = _names(self.parts)
        if self.rounds is not None:
            asked["rounds"] = self.rounds
        decode_tokens = plan.decode_tokens if self.decode_tokens is None else self.decode_tokens
        if asked or decode_tokens < plan.decode_tokens:  # more in a row make a longer run of the same plan
            asked["name"] = "own"
        plan = dataclasses.replace(plan, decode_tokens=decode_tokens, **asked)  # type: ignore[arg-type]
        plan.check()
        return plan


def start_bench(request: BenchRequest, output: Path, json_file: Path | None, console: Console) -> None:
    """Measure, print, append the record to OUTPUT/bench.jsonl and draw OUTPUT/bench.png.

    Raises:
        KeyboardInterrupt: after Ctrl-C, once what was measured is printed and kept.
    """
    with _progress(console) as say:
        record = run_benchmark(request.plan(), say)
    show(record, console)
    kept = output / f"{NAME}.jsonl"
    append(record, kept)
    console.print(Text(f"The record was added to {kept}."), soft_wrap=True)
    picture = output / picture_name(record)
    if draw(record, picture):
        console.print(Text(f"Drawn to {picture}."), soft_wrap=True)
    write_json(json_file, dataclasses.asdict(record))
    if record.figures.get("stopped"):
        raise KeyboardInterrupt(f"Stopped; what was measured until then is kept in {kept}.")


def show(record: RunRecord, console: Console) -> None:
    """Print every table of a record, then what was left out."""
    for name, (title, _) in TABLES.items():
        rows = rows_of(name, record)
        if not rows:
            continue
        table = Table(
            title=Text(title, style="bold"),
            title_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
        for place, heading in enumerate(rows[0]):
            if place == 0:
                table.add_column(heading, min_width=min(20, max(len(row[0]) for row in rows)))
            else:
                table.add_column(heading, justify="right", no_wrap=len(rows) > 2)
        # Where the lines would not fit, the second half of a cell stands below the first.
        broken = sum(max(len(row[place]) for row in rows) + 1 for place in range(len(rows[0]))) > console.width
        for name, *cells in rows[1:]:
            table.add_row(Text(name), *(Text(_in_two(cell) if broken else cell) for cell in cells))
        console.print(table)
    for sentence in record.figures["notes"]:
        console.print(Text(f"- {sentence}."))
    console.print(Text(machine(record)))


def _in_two(cell: str) -> str:
    return cell.replace(" (", "\n(").replace(" to ", "\nto ")


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[str], None]]:
    """A line a step with the time since the start; in a terminal the current step also turns."""
    started = time.monotonic()

    def line(text: str) -> Text:
        return Text(f"{format_seconds(time.monotonic() - started):>6}  {text}")

    if not console.is_terminal:
        yield lambda text: console.print(line(text), soft_wrap=True)
        return
    with console.status("starting") as status:

        def say(text: str) -> None:
            console.print(line(text))
            status.update(Text(text))

        yield say


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part.replace("_", "")) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{option} must be numbers of tokens with commas between them, got {text!r}") from None


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
