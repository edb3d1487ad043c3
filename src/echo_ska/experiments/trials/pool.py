"""Jobs in processes of their own, as many at once as there are cores, with one display of how far each is."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.context import SpawnProcess
from typing import Any

import torch
from rich.console import Console

from echo_ska.training import LineReporter, ProgressReporter, QueueReporter, Reporter, training_progress
from echo_ska.training.records import usable_cores
from echo_ska.training.reporter import format_seconds

ALLOCATOR = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=33554432:"
    "glibc.malloc.trim_threshold=8589934592:glibc.malloc.top_pad=268435456"
)
"""GLIBC_TUNABLES of a job's process, where nobody has set others: memory that a step gives back stays with the process.

glibc hands freed blocks of more than 128 KiB to the system, and takes them again, zeroed page by page, in the next
operation. With this, training echo-1m takes 9 % less CPU time by the median (4 to 14 %; glibc 2.36, one thread, six
interleaved pairs each of 16 x 256 bytes of text and of 64 sequences of mqar-grid), and 2 page faults a step instead of
10,000 to 28,000. Results are the same to the last bit, the most memory resident within 3 %. Other systems pass it over.
"""

GPU_BYTES = 3 << 30
"""Of a GPU's memory for a job of the small models that experiments compare: three times what most were seen to take."""

Stage = Callable[[str], Reporter]
"""Called with the name of a stage ("training"), gives the reporter that shows the stage in a row of its own."""


@dataclass(frozen=True)
class Job:
    """Work for one process.

    Attributes:
        name: its name, of which no two jobs share one.
        function: a module's own function (processes find it by name), called as `function(stage, **arguments)` with a
            `Stage`; returns plain data.
        arguments: by keyword, picklable.
    """

    name: str
    function: Callable[..., Any]
    arguments: dict[str, Any] = field(default_factory=dict)


class JobError(ChildProcessError):
    """A job failed: one sentence that names it. Tracebacks show, as a note, where in its process."""

    def __init__(self, sentence: str, details: str = "") -> None:
        super().__init__(sentence)
        if details:
            self.add_note(details)


@dataclass(frozen=True)
class _Outcome:
    """The last message of a job: its result, or why there is none."""

    job: str
    result: Any = None
    error: str | None = None
    details: str = ""


def run_jobs(
    jobs: Sequence[Job],
    console: Console,
    *,
    on_result: Callable[[str, Any], None] | None = None,
    cores: int | None = None,
) -> dict[str, Any]:
    """Run `jobs`, started in their order, and show how far each is: rows in a terminal, lines elsewhere.

    Args:
        jobs: the longest first, for the shortest wall time.
        console: where to show.
        on_result: called in this process with a job's name and result as soon as it ends.
        cores: cores to use, at least 1; None uses all that this process may. That many jobs run at once; with fewer
            jobs than cores, each has as many of torch's threads as there are cores for it.

    Returns:
        The results by name, in the order of `jobs`.

    Raises:
        JobError: as soon as a job fails or its process dies; all others are ended, as they are on Ctrl-C.
        ValueError: for two jobs of one name.
    """
    if len({job.name for job in jobs}) < len(jobs):
        raise ValueError(f"Every job needs a name of its own, got {', '.join(job.name for job in jobs)}.")
    cores = usable_cores() if cores is None else cores
    at_once = max(1, min(len(jobs), cores))
    context = multiprocessing.get_context("spawn")
    messages: Any = context.Queue()
    waiting = list(jobs)
    running: dict[str, tuple[SpawnProcess, float]] = {}
    results: dict[str, Any] = {}
    silent: set[str] = set()  # jobs whose process had ended, without a last message, when last looked at
    with _display(console) as display:
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    job = waiting.pop(0)
                    process = context.Process(target=_work, args=(job, max(1, cores // at_once), messages), daemon=True)
                    _start(process)
                    running[job.name] = process, time.monotonic()
                try:
                    message = messages.get(timeout=0.2)
                except queue.Empty:
                    ended = {name for name, (process, _) in running.items() if process.exitcode is not None}
                    # Looked at twice, since a last message may arrive between the wait and the look.
                    for name in sorted(ended & silent):
                        raise JobError(_died(name, running[name][0].exitcode)) from None
                    silent = ended
                    continue
                if not isinstance(message, _Outcome):
                    display.update(*message)
                    continue
                if message.error is not None:
                    raise JobError(message.error, message.details)
                process, started = running.pop(message.job)
                process.join()
                display.finish(message.job, time.monotonic() - started)
                results[message.job] = message.result
                if on_result is not None:
                    on_result(message.job, message.result)
        finally:
            _end([process for process, _ in running.values()])
    return {job.name: results[job.name] for job in jobs}


def places(device: str) -> int:
    """Jobs that a device takes at once: as many as there are cores, on a GPU no more than have room in its memory."""
    cores = usable_cores()
    if device == "cpu":
        return cores
    return max(1, min(cores, torch.cuda.mem_get_info()[0] // GPU_BYTES))


def _work(job: Job, threads: int, messages: Any) -> None:
    """What a job's process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the parent ends us
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(threads)
    try:
        result = job.function(lambda stage: QueueReporter(messages, f"{job.name}: {stage}"), **job.arguments)
    except Exception as error:
        reason = " ".join(str(error).split()).rstrip(".") or "no reason given"
        sentence = f"The job {job.name} failed ({type(error).__name__}): {reason}."
        messages.put(_Outcome(job.name, error=sentence, details=traceback.format_exc()))
    else:
        messages.put(_Outcome(job.name, result))


def _end_with(parent: Any) -> None:
    """End this process when `parent` has ended, in whatever way: a killed one cannot end its children."""
    parent.join()
    os._exit(1)


def _start(process: SpawnProcess) -> None:
    # A child inherits an ignored Ctrl-C, and so prints no traceback if one comes while it still imports torch.
    if threading.current_thread() is not threading.main_thread():
        _start_with_allocator(process)
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _start_with_allocator(process)
    finally:
        signal.signal(signal.SIGINT, handler)


def _start_with_allocator(process: SpawnProcess) -> None:
    if sys.platform != "linux" or "GLIBC_TUNABLES" in os.environ:
        process.start()
        return
    os.environ["GLIBC_TUNABLES"] = ALLOCATOR  # glibc reads it when a program starts, so it must be there before
    try:
        process.start()
    finally:
        del os.environ["GLIBC_TUNABLES"]


def _end(processes: list[SpawnProcess]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(5)
        if process.exitcode is None:
            process.kill()
            process.join()


def _died(name: str, exit_code: int | None) -> str:
    # Systems short of memory send signal 9 (SIGKILL, which Windows does not have).
    hint = "; the machine may be short of memory" if exit_code == -9 else ""
    return f"The job {name} failed: its process ended without a result, with exit code {exit_code}{hint}."


class _Display:
    """A row, or a line now and then, for every stage of every running job."""

    def __init__(self, console: Console, make_reporter: Callable[[str], Reporter]) -> None:
        self.console = console
        self.make_reporter = make_reporter
        self.stages: dict[str, Reporter] = {}

    def update(self, stage: str, step: int, steps: int, figures: dict[str, float]) -> None:
        self.stages.setdefault(stage, self.make_reporter(stage)).update(step, steps, figures)

    def finish(self, job: str, seconds: float) -> None:
        """Replace a job's rows by one line: many jobs would outgrow the terminal."""
        for stage, reporter in self.stages.items():
            if stage.startswith(f"{job}: ") and isinstance(reporter, ProgressReporter) and reporter.task is not None:
                reporter.progress.update(reporter.task, visible=False)
        self.console.print(f"{job}: finished after {format_seconds(seconds)}", markup=False, highlight=False)


@contextmanager
def _display(console: Console) -> Iterator[_Display]:
    if not console.is_terminal:
        yield _Display(console, lambda stage: LineReporter(console.file, stage))
        return
    with training_progress(console) as progress:
        yield _Display(console, lambda stage: ProgressReporter(progress, stage))
