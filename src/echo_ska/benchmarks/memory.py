"""Peak memory of one forward and backward call; on the CPU each in a fresh process.

    python -m echo_ska.benchmarks.memory '{"route": "ska", "tokens": 2048, ...}'

prints the bytes. The parent is `peak_memory`.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from echo_ska.benchmarks.plan import Sizes
from echo_ska.benchmarks.routes import ROUTES, Route
from echo_ska.benchmarks.sources import INPUTS, Inputs, Source

WARM_UP_TOKENS = 64
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class ChildError(ChildProcessError):
    """A process that was to measure ended without a figure; the sentence says how."""


def train_step(route: Route, inputs: Inputs) -> None:
    """Forward and backward: every input's gradient, kept until all are there."""
    leaves = [tensor.requires_grad_() for tensor in inputs.values()]
    output = route.run(**inputs)
    torch.autograd.grad(output, leaves, torch.ones_like(output))


def peak_memory(name: str, tokens: int, sizes: Sizes, device: str, threads: int, timeout: float) -> int:
    """Bytes that a call needed at its peak beyond its inputs: work space, outputs, what it keeps, gradients.

    On the CPU the most that was resident during the call, less what was before it, in a fresh process. Memory that
    was freed before the call and that its allocations reuse counts only on Linux with glibc (`give_back_pages`);
    elsewhere the figure may be too low by it. On a GPU the most that torch had allocated, likewise.

    Raises:
        ChildError: the process died or took longer than `timeout` seconds.
    """
    if device == "cuda":
        return measure_here(name, tokens, sizes, device)
    request = {"route": name, "tokens": tokens, "sizes": dataclasses.asdict(sizes), "threads": threads}
    return int(ask_child("echo_ska.benchmarks.memory", request, timeout))


def ask_child(module: str, request: dict[str, Any], timeout: float) -> Any:
    """What `python -m module REQUEST` prints last, as JSON."""
    command = [sys.executable, "-m", module, json.dumps(request)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise ChildError(f"its process took longer than {timeout:.0f} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [""]
        hint = ", probably for want of memory" if done.returncode == -9 else ""
        raise ChildError(f"its process ended with exit code {done.returncode}{hint}: {lines[-1][:200]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure_here(name: str, tokens: int, sizes: Sizes, device: str) -> int:
    """As `peak_memory`, in this process."""
    route = ROUTES[name](sizes, device)

    def inputs(count: int) -> Inputs:
        return INPUTS[route.inputs](sizes, Source(route.dtype, device), count)

    train_step(route, inputs(min(tokens, WARM_UP_TOKENS)))
    measured = inputs(tokens)
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        train_step(route, measured)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    give_back_pages()  # a call that reuses what the inputs were drawn through would seem to need less
    before = resident_bytes()
    _forget_peak()
    train_step(route, measured)
    return max(0, _peak_bytes() - before)


def give_back_pages() -> bool:
    """Give the pages of freed memory back to the system, which the C library may keep for later.

    Returns:
        False where nothing was done: it takes Linux with glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return False
    trim(0)
    return True


def resident_bytes() -> int:
    """Bytes that this process has resident now; where the system does not say, the most it ever had."""
    return _field(STATUS, "VmRSS") or _most_ever()


def available_bytes(device: str) -> int | None:
    """Bytes that could still be allocated, or None where the system does not say."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    found = _field(Path("/proc/meminfo"), "MemAvailable")
    group = Path("/sys/fs/cgroup")  # a container's own limit
    try:
        limit = int((group / "memory.max").read_text(encoding="utf-8"))
        used = int((group / "memory.current").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no such file, or "max": no limit
        return found
    left = limit - used + (_field(group / "memory.stat", "inactive_file") or 0)
    return left if found is None else min(found, left)


def _peak_bytes() -> int:
    return _field(STATUS, "VmHWM") or _most_ever()


def _forget_peak() -> None:
    """Start the system's count of the largest resident size anew, where it allows that (Linux)."""
    with contextlib.suppress(OSError):
        RESET.write_text("5", encoding="utf-8")


def _most_ever() -> int:
    if sys.platform == "win32":
        raise ChildError("Windows does not say how much memory a process has resident")
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most  # macOS counts bytes, Linux kibibytes


def _field(path: Path, field: str) -> int | None:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.replace(":", " ").split(" ", 1)[0].strip() == field:
            _, number, *unit = line.split()
            return int(number) * (1024 if unit == ["kB"] else 1)
    return None


def main(request: str) -> None:
    """Measure what the JSON `request` says and print the bytes."""
    asked = json.loads(request)
    torch.set_num_threads(asked["threads"])
    print(measure_here(asked["route"], asked["tokens"], Sizes(**asked["sizes"]), "cpu"))


if __name__ == "__main__":
    main(sys.argv[1])
