"""Run records: what was run, where, with what, and the figures that came out; one JSON line a run."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import torch

import echo_ska
from echo_ska.sealed import whole_file

QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Where Linux tells a container how much of how many microseconds of all cores it may use."""


@dataclass(frozen=True)
class RunRecord:
    """One run.

    Attributes:
        name: what was run.
        configuration: settings that repeat it, JSON.
        figures: what came out, JSON. Numbers that are not finite are written as null.
        seed: the run's seed.
        seconds: wall time of the run.
        commit: the checkout's commit, None outside one.
        dirty: whether tracked files outside results/ differed from that commit, None outside a checkout.
        date: when the record was made, UTC, ISO 8601.
        hardware: `cpu`, `cores` (logical ones this process may use), `threads` (torch's), `gpu` (name or
            None).
        versions: of python, torch, transformers and echo_ska.
        peak_memory_bytes: most memory the process has had resident so far, None on Windows.
    """

    name: str
    configuration: dict[str, Any]
    figures: dict[str, Any]
    seed: int
    seconds: float
    commit: str | None
    dirty: bool | None
    date: str
    hardware: dict[str, Any]
    versions: dict[str, str]
    peak_memory_bytes: int | None


def make_record(
    name: str, configuration: dict[str, Any], figures: dict[str, Any], *, seed: int, seconds: float
) -> RunRecord:
    """A record of a run that just ended in this process, with commit, date, hardware, versions and memory."""
    commit, dirty = checkout_state()
    return RunRecord(
        name=name,
        configuration=configuration,
        figures=figures,
        seed=seed,
        seconds=seconds,
        commit=commit,
        dirty=dirty,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        hardware=describe_hardware(),
        versions=describe_versions(),
        peak_memory_bytes=peak_memory_bytes(),
    )


def append(record: RunRecord, path: str | Path) -> None:
    """Add a record to the end of `path`: one line in one write, so that parallel runs do not mix theirs.

    Raises:
        OSError: it could not be written; no part of it is there.
    """
    line = (json.dumps(_finite(dataclasses.asdict(record)), allow_nan=False) + "\n").encode()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o644)
    try:
        try:
            written = os.write(descriptor, line)
        except OSError as error:
            raise OSError(
                f"The record could not be written to {path} ({error.strerror}): make room on the disk."
            ) from error
        if written != len(line):
            end = os.lseek(descriptor, 0, os.SEEK_CUR)
            if os.fstat(descriptor).st_size == end:  # else another run has written behind it
                os.ftruncate(descriptor, end - written)
            raise OSError(f"The record could not be written to {path}: make room on the disk.")
    finally:
        os.close(descriptor)


def append_new(record: RunRecord, path: str | Path, measured: Sequence[str] = ()) -> None:
    """Add a record, unless one of its configuration is there: of the same run, when it was finished before.

    Args:
        record: what to add.
        path: the file.
        measured: figures that say what the run was measured on, where the configuration does not; a record that differs
            in one of them is added too.
    """

    def run(of: RunRecord) -> tuple[Any, ...]:
        return json.loads(json.dumps(of.configuration)), *map(of.figures.get, measured)

    if not Path(path).exists() or all(run(old) != run(record) for old in read(path)):
        append(record, path)


def read(path: str | Path) -> list[RunRecord]:
    """All records of a file, oldest first.

    Raises:
        ValueError: naming the first line that is not a record.
    """
    records = []
    lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            records.append(RunRecord(**json.loads(line)))
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(f"Line {number} of {path} is not a run record: {error}.") from None
    return records


def require_records(path: str | Path) -> None:
    """Raise ValueError if a file is there that no record could be added to: before any work, not after it."""
    if Path(path).exists():
        read(path)


def checkout_state() -> tuple[str | None, bool | None]:
    """(commit, dirty) of the checkout this package runs from; (None, None) for an installed package."""
    package = Path(echo_ska.__file__).resolve().parent
    top = _git(package, "rev-parse", "--show-toplevel")
    # A virtual environment inside someone else's checkout is not a checkout of ours.
    if top is None or Path(top).resolve() / "src" / "echo_ska" != package:
        return None, None
    commit = _git(package, "rev-parse", "HEAD")
    changes = _git(Path(top), "status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
    return commit, None if changes is None else bool(changes)


def describe_hardware() -> dict[str, Any]:
    """CPU model, cores this process may use, torch's threads, and the GPU's name or None."""
    return {
        "cpu": _cpu_model(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def usable_cores() -> int:
    """Cores that this process may use: its affinity, or less where a container's quota allows less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = QUOTA.read_text(encoding="utf-8").split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max": no quota
        return cores


def describe_versions() -> dict[str, str]:
    """Versions of python, torch, transformers and echo_ska."""
    import transformers  # here, because it is slow to import and a reader of records does not need it

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "echo_ska": echo_ska.__version__,
    }


def peak_memory_bytes() -> int | None:
    """The most memory this process has had resident so far; None on Windows."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kibibytes


def write_json(path: Path | None, value: Any) -> None:
    """Write `value` to `path` in one piece, beside it first; numbers that are not finite become null. None: nothing.

    `-` is standard output. What is no regular file, such as a FIFO or a device, is written to as it is.
    """
    if path is None:
        return
    text = json.dumps(_finite(value), indent=2, allow_nan=False, default=str) + "\n"
    if (stream := standard_stream(path)) is not None:
        stream.write(text)
        stream.flush()
    elif path.exists() and not path.is_file():
        with path.open("w", encoding="utf-8") as file:
            file.write(text)
    else:
        with whole_file(path) as partial:
            partial.write_text(text, encoding="utf-8")


def standard_stream(path: Path) -> TextIO | None:
    """Standard output for `-`, and standard output or error for a name of what either is, such as /dev/stdout.

    Where such a stream is redirected to a file, a file beside it that took its place would take what was printed.
    """
    if path == Path("-"):
        return sys.stdout
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, AttributeError):  # there is no such file, or no descriptor or stream
            if os.path.samestat(path.stat(), os.fstat(stream.fileno())):
                return stream
    return None


def is_printed(path: Path | None) -> bool:
    """Whether what is written to `path` goes to standard output."""
    return path is not None and (stream := standard_stream(path)) is not None and stream is sys.stdout


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
