"""Threads that work through the heads of a call together."""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from echo_ska.ops.native.build import Call, library

_own = threading.local()
_forked = False


def work_through(call: Call) -> None:
    """Run a call on as many threads as torch may use; the kernels hold no lock and let go of Python's."""
    threads = torch.get_num_threads()
    # Few large groups keep what lies together in memory together; two a thread keep all threads busy to the end.
    groups = -(-2 * threads // call.sequences)
    call.group = max(1, call.heads // groups)
    need = library().echo_ska_scratch_bytes(call)
    threads = min(threads, call.sequences * -(-call.heads // call.group))
    team = openmp() if threads > 1 else None
    if team is not None:
        library().echo_ska_work_together(call, _scratch(need * threads), need, threads, team)
        return
    waiting = [_threads().submit(_work, call, need) for _ in range(threads - 1)]
    _work(call, need)
    for future in waiting:
        future.result()


def _work(call: Call, need: int) -> None:
    library().echo_ska_work(call, _scratch(need))


def _scratch(need: int) -> int:
    """The address of this thread's scratch memory. It is kept: fresh pages cost more than what is done in them."""
    memory: Tensor | None = getattr(_own, "memory", None)
    if memory is None or memory.numel() < need + 64:
        # Zeros, because padded lanes are computed with, if never used, and denormal garbage would be slow.
        memory = _own.memory = torch.zeros(need + 64, dtype=torch.uint8, device="cpu")
    return (memory.data_ptr() + 63) // 64 * 64


@functools.cache
def openmp() -> int | None:
    """The address of GOMP_parallel in the OpenMP that torch itself computes with, where it has one that may be used.

    Its threads wait for work at full speed for a while after every operation of torch: threads of our own would have
    to share the cores with them (a sixth of the time of a short call, measured).
    """
    if _forked:
        return None
    try:
        return ctypes.cast(ctypes.CDLL(torch._C.__file__).GOMP_parallel, ctypes.c_void_p).value
    except (AttributeError, OSError):
        return None


@functools.cache
def _threads() -> ThreadPoolExecutor:
    """Threads of our own, for where there is no OpenMP to ask."""
    return ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="echo-ska")


def _after_fork() -> None:
    """A child has none of its parent's threads, and would wait for them for ever."""
    global _forked
    _threads.cache_clear()
    openmp.cache_clear()
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
