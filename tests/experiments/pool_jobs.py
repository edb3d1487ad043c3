"""Jobs for the pool's tests; their processes import this file by name."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch

from echo_ska.experiments.trials.pool import Stage


def multiply(stage: Stage, *, number: int) -> dict[str, int]:
    reporter = stage("counting")
    for step in range(3):
        reporter.update(step + 1, 3, {"loss": 1.0})
    return {"product": 6 * number, "threads": torch.get_num_threads()}


def allocator(stage: Stage) -> dict[str, Any]:
    """The allocator's settings, and numbers that are computed under them in blocks that it treats apart."""
    entries = Path("/proc/self/environ").read_text().split("\0")  # as the system started the process
    name = "GLIBC_TUNABLES="
    drawn = torch.randn(300, 300, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        drawn = torch.softmax(drawn @ drawn.T, dim=-1)
    return {
        "settings": os.environ.get("GLIBC_TUNABLES"),
        "started with": [entry.removeprefix(name) for entry in entries if entry.startswith(name)],
        "numbers": drawn.flatten().tolist(),
    }


def fail(stage: Stage, *, after: Path) -> None:
    _wait_for(after)
    raise ValueError("the ridge is\n below zero.")


def vanish(stage: Stage, *, after: Path) -> None:
    _wait_for(after)
    os._exit(3)


def sleep(stage: Stage, *, pid_file: Path) -> None:
    pid_file.with_suffix(".partial").write_text(str(os.getpid()))
    pid_file.with_suffix(".partial").rename(pid_file)
    time.sleep(600)


def _wait_for(file: Path) -> None:
    while not file.exists():
        time.sleep(0.05)
