"""A worker that is killed is started again by torchrun, and the run ends as if nothing had been."""

import os
import signal
import subprocess
import sys
import time

import pytest
import together
import torch
from accelerate.state import AcceleratorState, PartialState
from launched import torchrun
from test_checkpoint import contents
from torch.distributed.constants import default_pg_timeout

from echo_ska.corpus import CorpusSettings, prepare_corpus
from echo_ska.models import EchoForCausalLM
from echo_ska.training import ScaleConfig
from echo_ska.training.checkpoint import list_checkpoints
from echo_ska.training.processes import PATIENCE, Processes, is_first_process, start_processes
from echo_ska.training.records import read


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL")
def test_a_killed_worker_is_restarted_and_changes_no_bit(tmp_path, two_processes):
    command = torchrun("--max-restarts", "3", "--monitor-interval", "0.1", together.__file__, tmp_path, "restarted")
    launched = subprocess.Popen(**command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    victim = tmp_path / "pid-1-0"
    while launched.poll() is None and len(list_checkpoints(tmp_path / "run")) < 2:
        time.sleep(0.01)
    os.kill(int(victim.read_text()), signal.SIGKILL)
    _, said = launched.communicate(timeout=240)
    assert launched.returncode == 0, said[-4000:]
    assert (tmp_path / "pid-1-1").exists()  # it was restarted
    assert contents(tmp_path / "run") == contents(two_processes.folder / "undisturbed")


def test_the_command_prints_and_writes_once(tmp_path):
    settings = (
        "train --task mqar-grid --steps 4 --batch-size 4 --length 32 --set hidden_size=32 --set rank=4 --accumulate 2"
    )
    command = torchrun("-m", "echo_ska", *settings.split(), "--strategy", "fsdp", "--output", tmp_path / "run")
    for _ in range(2):  # trained, then found finished
        done = subprocess.run(**command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        assert done.stdout.count("Kept in") == done.stdout.count("parameters, layers") == 1
    assert len(read(tmp_path / "run" / "records.jsonl")) == 1
    assert read(tmp_path / "run" / "records.jsonl")[0].figures["processes"] == 2
    assert EchoForCausalLM.from_pretrained(tmp_path / "run" / "model").config.hidden_size == 32


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
    assert is_first_process()  # of one process, which is no run of several whatever its environment holds
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert is_first_process()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not is_first_process()


def test_only_what_is_agreed_upon_is_waited_for_patiently(two_processes):
    for result in two_processes.results:
        assert result["limits"] == {"default": default_pg_timeout.total_seconds(), "control": PATIENCE.total_seconds()}


MET_BY_ALL = {
    "--task mqar --vocab-size 64 --accumulate 3": "cannot be divided into 6 equal parts",
    "--text nowhere": "nowhere does not exist",
    "--task mqar --vocab-size 64 --strategy context --model echo-1m-ssm-attention": "cannot be split over processes",
}


@pytest.mark.parametrize("options", MET_BY_ALL)
def test_what_all_meet_is_told_once(options):
    command = f"-m echo_ska train {options} --steps 2 --batch-size 4 --length 32"
    done = subprocess.run(**torchrun(*command.split()), capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stderr.count(MET_BY_ALL[options]) == 1, done.stderr
    assert "process 1: " not in done.stderr


def test_what_the_first_alone_looks_at_is_told_once_and_ends_all(tmp_path):
    (tmp_path / "rows.txt").write_text("What is learnt here does not matter. " * 30)
    prepare_corpus([str(tmp_path / "rows.txt")], tmp_path / "corpus", CorpusSettings(held_out=0))
    shard = tmp_path / "corpus" / "training" / "shard-00000.bin"
    shard.write_bytes(b"?" + shard.read_bytes()[1:])
    command = "-m echo_ska train --steps 2 --batch-size 2 --length 32 --set hidden_size=32 --data"
    done = subprocess.run(**torchrun(*command.split(), tmp_path / "corpus"), capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stderr.count("is damaged: training/shard-00000.bin missing or not as written") == 1, done.stderr
    assert "process 1: " not in done.stderr


def test_a_strategy_without_processes_is_refused():
    with (
        pytest.raises(ValueError, match=r"torchrun --nproc-per-node 2 .* or give --strategy auto\.$"),
        start_processes(torch.device("cpu"), ScaleConfig(strategy="fsdp")),
    ):
        pass


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(
    ("asked", "strategy"),
    [("FSDP", "auto"), ("DEEPSPEED", "ddp"), ("MEGATRON_LM", "auto"), ("PARALLELISM_CONFIG", "ddp")],
)
def test_a_configuration_of_accelerate_that_would_shard_behind_our_back_is_refused(
    asked, strategy, processes, monkeypatch
):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    for value in ("true", "True"):
        monkeypatch.setenv(f"ACCELERATE_USE_{asked}", value)
        with (
            pytest.raises(ValueError, match=rf"configured for {asked} \(ACCELERATE_USE_{asked} is true\).*: unset ACC"),
            start_processes(torch.device("cpu"), ScaleConfig(strategy=strategy)),
        ):
            pass


def test_a_plain_training_says_which_variable_is_in_its_way(tmp_path):
    command = ["-m", "echo_ska", "train", "--task", "mqar", "--vocab-size", "64", "--steps", "1", "--batch-size", "2"]
    settings = {"env": {**os.environ, "ACCELERATE_USE_MEGATRON_LM": "true"}, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, *command], **settings)
    assert done.returncode == 1
    assert "unset ACCELERATE_USE_MEGATRON_LM, or start" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_no_variable_of_accelerates_is_read_or_left(monkeypatch):
    given = {
        "ACCELERATE_USE_FSDP": "false",
        "ACCELERATE_USE_CPU": "perhaps",
        "ACCELERATE_TORCH_DEVICE": "abacus",
        "ACCELERATE_DEBUG_MODE": "perhaps",
        "ACCELERATE_MIXED_PRECISION": "fp8",
        "ACCELERATE_USE_SAGEMAKER": "true",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(PartialState, "_shared_state", {})  # as in a process that has not trained yet
    monkeypatch.setattr(AcceleratorState, "_shared_state", {})
    with start_processes(torch.device("cpu"), ScaleConfig()) as (accelerator, _):
        assert accelerator.distributed_type == "NO"
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"  # as Accelerate does where it is given a plugin
    assert {name: value for name, value in os.environ.items() if name.startswith("ACCELERATE_")} == given


def test_nobody_goes_on_before_all_have_joined(two_processes):
    for result in two_processes.results:
        assert result["joined"]


def test_what_is_computed_does_not_follow_accelerates_environment(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    AcceleratorState._reset_state()  # it keeps what it was first told
    with start_processes(torch.device("cpu"), ScaleConfig()) as (accelerator, _):
        assert accelerator.gradient_accumulation_steps == 1
        assert accelerator.mixed_precision == "no"
        assert accelerator.prepare(model := torch.nn.Linear(2, 2)) is model
