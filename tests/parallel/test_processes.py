"""A process that fails ends the others, and its error arrives; test_context.py runs those that do not."""

from __future__ import annotations

import parallel_cases
import pytest
from torch.multiprocessing.spawn import ProcessRaisedException

from echo_ska.parallel import run_processes


def test_the_error_of_a_process_arrives() -> None:
    with pytest.raises(ProcessRaisedException, match="a process fails on purpose, with 3"):
        run_processes(parallel_cases.failing, 1, 3)


def test_no_process_is_refused() -> None:
    with pytest.raises(ValueError, match="world must be at least 1, got 0"):
        run_processes(parallel_cases.failing, 0)


def test_tensors_arrive_whole() -> None:
    for _ in range(3):  # the processes may have ended by then
        found = run_processes(parallel_cases.returning, 2, 100_000)
        assert [(len(tensor), float(tensor.sum())) for tensor in found] == [(100_000, 0.0), (100_000, 100_000.0)]
