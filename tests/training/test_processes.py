"""A worker that is killed is started again by torchrun, and the run ends as if nothing had been."""

import os
import signal
import subprocess
import time

import pytest
import together
from test_checkpoint import contents

from conftest import torchrun
from echo_ska.training import ScaleConfig
from echo_ska.training.checkpoint import list_checkpoints
from echo_ska.training.processes import Processes, is_first_process, start_processes


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL")
def test_a_killed_worker_is_restarted_and_changes_no_bit(tmp_path, two_processes):
    command = torchrun("--max-restarts", "3", "--monitor-interval", "0.1", together.__file__, tmp_path, "restarted")
    launched = subprocess.Popen(**command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    victim = tmp_path / "pid-1-0"
    while launched.poll() is None and len(list_checkpoints(tmp_path / "run")) < 2:
        time.sleep(0.01)
    os.kill(int(victim.read_text()), signal.SIGKILL)
    _, said = launched.communicate()
    assert launched.returncode == 0, said[-4000:]
    assert (tmp_path / "pid-1-1").exists()  # it was restarted
    assert contents(tmp_path / "run") == contents(two_processes.folder / "undisturbed")


def test_one_process_agrees_with_itself():
    alone = Processes()
    assert alone.first
    assert alone.on_first(lambda: 3) == 3
    assert alone.gather("a") == ["a"]
    assert alone.sum([1, 0.5]) == [1, 0.5]
    with pytest.raises(OSError, match="full"):
        alone.together(lambda: (_ for _ in ()).throw(OSError("full")))


def test_the_launcher_says_who_is_first(monkeypatch):
    assert is_first_process()
    monkeypatch.setenv("RANK", "1")
    assert not is_first_process()


def test_a_strategy_without_processes_is_refused():
    import torch

    with (
        pytest.raises(ValueError, match="torchrun --nproc-per-node 2"),
        start_processes(torch.device("cpu"), ScaleConfig(strategy="fsdp")),
    ):
        pass
