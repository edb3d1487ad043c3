"""How a training shows itself: bars in a terminal, lines elsewhere, or messages to another process."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from echo_ska.training.throughput import Throughput


class Reporter(Protocol):
    """Told how far a training is."""

    def update(self, step: int, steps: int, figures: dict[str, float]) -> None:
        """`step` of `steps` are done; `figures`: those that `format_figures` knows; or is empty."""
        ...


class ProgressReporter:
    """A row in a rich progress display that the caller makes (`training_progress`) and shares among
    trainings.

    Args:
        progress: the display, live while it is used as a context manager.
        description: the row's name.
    """

    def __init__(self, progress: Progress, description: str = "training") -> None:
        self.progress = progress
        self.description = description
        self.task: TaskID | None = None

    def update(self, step: int, steps: int, figures: dict[str, float]) -> None:
        """Show the row. It starts at the first step reported, so that a resumed run's time left is right."""
        if self.task is None:
            self.task = self.progress.add_task(self.description, total=steps, completed=step, figures="")
        self.progress.update(self.task, completed=step)
        if figures:
            self.progress.update(self.task, figures=format_figures(figures))


class LineReporter:
    """A line of text every `seconds` seconds and at the end, for logs and pipes."""

    def __init__(self, stream: IO[str] | None = None, description: str = "training", seconds: float = 10.0) -> None:
        self.stream = stream
        self.description = description
        self.seconds = seconds
        self._first: tuple[int, float] | None = None
        self._last = -float("inf")

    def update(self, step: int, steps: int, figures: dict[str, float]) -> None:
        """Print the line if one is due."""
        now = time.monotonic()
        if self._first is None:
            self._first = (step, now)
            if not figures:  # where it starts, with nothing to say yet
                return
        if step < steps and now - self._last < self.seconds:
            return
        self._last = now
        first_step, started = self._first
        left = (now - started) / max(step - first_step, 1) * (steps - step)
        stream = self.stream or sys.stdout
        parts = [f"step {step:,}/{steps:,}", format_figures(figures), f"{format_seconds(left)} left"]
        print(f"{self.description}: {'  '.join(filter(None, parts))}", file=stream, flush=True)


class ThroughputReporter:
    """Hands on to another reporter, with the MFU and the peak memory added to the figures."""

    def __init__(self, reporter: Reporter, throughput: Throughput) -> None:
        self.reporter = reporter
        self.throughput = throughput

    def update(self, step: int, steps: int, figures: dict[str, float]) -> None:
        """Add and hand on."""
        self.reporter.update(step, steps, self.throughput.added_to(figures))


class QueueReporter:
    """Puts (description, step, steps, figures) on a queue, such as `multiprocessing.Queue`."""

    def __init__(self, queue: Any, description: str) -> None:
        self.queue = queue
        self.description = description

    def update(self, step: int, steps: int, figures: dict[str, float]) -> None:
        """Send the message."""
        self.queue.put((self.description, step, steps, figures))


def training_progress(console: Console | None = None) -> Progress:
    """A rich progress display with the columns that `ProgressReporter` fills."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
        console=console,
    )


@contextmanager
def console_reporter(
    description: str = "training", console: Console | None = None, throughput: Throughput | None = None
) -> Iterator[Reporter]:
    """A progress row if `console` is a terminal, lines otherwise; with MFU and peak memory where `throughput` says."""
    console = console or Console()

    def measured(reporter: Reporter) -> Reporter:
        return reporter if throughput is None else ThroughputReporter(reporter, throughput)

    if not console.is_terminal:
        yield measured(LineReporter(console.file, description))
        return
    with training_progress(console) as progress:
        yield measured(ProgressReporter(progress, description))


def format_figures(figures: dict[str, float]) -> str:
    """Loss in nats, accuracy in percent, speed, MFU in percent, peak memory in GB (1e9 bytes); those that are there."""
    shown = []
    if "loss" in figures:
        shown.append(f"loss {figures['loss']:.3f}")
    if "accuracy" in figures:
        shown.append(f"accuracy {100 * figures['accuracy']:.1f} %")
    if "tokens_per_second" in figures:
        shown.append(f"{figures['tokens_per_second']:,.0f} tokens/s")
    if "mfu" in figures:
        shown.append(f"MFU {100 * figures['mfu']:.1f} %")
    if "peak_memory_bytes" in figures:
        shown.append(f"{figures['peak_memory_bytes'] / 1e9:.2f} GB at most")
    return "  ".join(shown)


def format_seconds(seconds: float) -> str:
    """Minutes and seconds, or hours, minutes and seconds: 1:05, 2:00:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
