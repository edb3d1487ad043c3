"""Processes on this machine that exchange by gloo."""

from __future__ import annotations

import datetime
import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing

TIMEOUT = datetime.timedelta(minutes=30)


def run_processes(function: Callable[..., Any], world: int, *arguments: Any) -> list[Any]:
    """Call `function(*arguments)` in `world` processes that form the default group of `torch.distributed`.

    Each has one thread. On several machines, start one process a rank by `torchrun` instead.

    Args:
        function: a module's own function: processes find it by name.
        world: how many processes, at least 1.
        arguments: what it is called with, picklable.

    Returns:
        What the function returned, by rank; picklable.

    Raises:
        ValueError: `world` is below 1.
        torch.multiprocessing.ProcessRaisedException: one of them failed; the others are ended.
    """
    if world < 1:
        raise ValueError(f"world must be at least 1, got {world}")
    with tempfile.TemporaryDirectory() as folder:
        results = multiprocessing.get_context("spawn").SimpleQueue()
        context = multiprocessing.spawn(
            _member, (function, world, arguments, folder, results), nprocs=world, join=False
        )
        found: dict[int, Any] = {}
        while len(found) < world:
            # Results are taken while processes run: a large one would otherwise fill the pipe and be waited for.
            if not results.empty():
                rank, result = results.get()
                found[rank] = pickle.loads(result)
            elif context.join(0.05) and results.empty() and len(found) < world:
                raise ChildProcessError("a process ended without a result")
        while not context.join():
            pass
    return [found[rank] for rank in range(world)]


def _member(
    rank: int, function: Callable[..., Any], world: int, arguments: tuple[Any, ...], folder: str, results: Any
) -> None:
    torch.set_num_threads(1)
    # All are on this machine, whose own name may not be one that can be looked up.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = (Path(folder) / "store").as_uri()
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=TIMEOUT)
    try:
        # As bytes: torch would hand over tensors by handles, which are of no use once this process has ended.
        results.put((rank, pickle.dumps(function(*arguments))))
        dist.barrier()
    finally:
        dist.destroy_process_group()
