"""A run's folder is its own while it goes on, and nobody's once it ended, however it did."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_checkpoint import contents
from tiny_model import CountingData, build, build_echo, config

from echo_ska.models import EchoForCausalLM
from echo_ska.sealed import write_sums
from echo_ska.training import train
from echo_ska.training.checkpoint import PARTIAL, TRAINER

SLOW = """
import sys, time
from tiny_model import CountingData, build, config
from echo_ska.training import train
class Slow(CountingData):
    def batch(self, step):
        time.sleep(0.0 if step < 6 else 60.0)
        return super().batch(step)
train(build(), Slow(), config(), directory=sys.argv[1])
"""


def refused(folder):
    with pytest.raises(ValueError, match=f"another process is training in {folder}: wait for its end, or train in an"):
        train(build(), CountingData(), config(), directory=folder)


def test_a_second_run_is_refused_and_disturbs_no_bit(tmp_path):
    class Disturbed(CountingData):
        def batch(self, step):
            (tmp_path / "run" / "checkpoints" / f"{PARTIAL}step-{step:06d}").mkdir(parents=True)
            refused(tmp_path / "run")
            (tmp_path / "run" / "checkpoints" / f"{PARTIAL}step-{step:06d}").rmdir()  # it was not swept
            return super().batch(step)

    train(build(), Disturbed(), config(7), directory=tmp_path / "run")
    train(build(), CountingData(), config(7), directory=tmp_path / "whole")
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_an_error_gives_the_folder_back(tmp_path):
    class Failing(CountingData):
        def batch(self, step):
            raise OSError("no text")

    for _ in range(2):
        with contextlib.suppress(OSError):
            train(build(), Failing(), config(), directory=tmp_path)
    train(build(), CountingData(), config(2), directory=tmp_path)


def test_the_log_of_a_run_whose_checkpoints_were_deleted_is_kept_beside(tmp_path):
    train(build(), CountingData(), config(7), directory=tmp_path)
    log = (tmp_path / "log.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "checkpoints")
    train(build(), CountingData(), config(4), directory=tmp_path)
    assert (tmp_path / "log-1.jsonl").read_bytes() == log
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [3, 4]


def test_a_description_that_is_no_json_is_refused_before_the_first_step(tmp_path):
    class Described(CountingData):
        def describe(self):
            return {"folder": tmp_path}

        def batch(self, step):
            raise AssertionError

    with pytest.raises(ValueError, match=r"What describes the data is no JSON \(.*Path.*\): let its describe\(\)"):
        train(build(), Described(), config(5), directory=tmp_path / "run")
    assert not list((tmp_path / "run").rglob("step-*"))


def freeze(model):
    model.embedding.weight.requires_grad_(False)


def hasten(model):
    model.recurrence._learning_rate_scale = {"bias_hh_l0": 10.0}


def keep_from_decay(model):
    model.recurrence._no_weight_decay = ("weight_hh_l0",)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (freeze, "trained_parameters"),
        (hasten, "learning_rate_scales"),
        (keep_from_decay, "decayed_parameters"),
    ],
)
def test_other_parameters_to_train_or_otherwise_are_refused(tmp_path, change, named):
    train(build(), CountingData(), config(5), directory=tmp_path)
    model = build()
    change(model)
    with pytest.raises(ValueError, match=f"step-000005 was trained with another optimizer.{named}: use"):
        train(model, CountingData(), config(5), directory=tmp_path)


def test_a_checkpoint_of_a_version_that_did_not_record_them_is_resumed(tmp_path):
    train(build(), CountingData(), config(5), directory=tmp_path)
    folder = tmp_path / "checkpoints" / "step-000005"
    trainer = json.loads((folder / TRAINER).read_text())
    del trainer["configuration"]["optimizer"]
    (folder / TRAINER).write_text(json.dumps(trainer))
    write_sums(folder, ["model.safetensors", "optimizer.safetensors", TRAINER])
    assert train(build(), CountingData(), config(5), directory=tmp_path).figures["loss"] > 0


def test_a_model_that_was_saved_meanwhile_goes_on(tmp_path):
    """`save_pretrained` writes its architecture and dtype into the configuration of the model that it saves."""
    model = build_echo()
    train(model, CountingData(), config(5), directory=tmp_path)
    model.save_pretrained(tmp_path / "peek")
    assert model.config.architectures == ["EchoForCausalLM"]
    for again in (model, EchoForCausalLM.from_pretrained(tmp_path / "peek")):
        assert train(again, CountingData(), config(5), directory=tmp_path).figures["loss"] > 0


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL")
def test_a_killed_run_gives_the_folder_back(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    running = subprocess.Popen([sys.executable, "-c", SLOW, tmp_path], env=environment)
    try:
        while not (tmp_path / "checkpoints" / "step-000005").exists():
            assert running.poll() is None
            time.sleep(0.02)
        refused(tmp_path)
    finally:
        running.kill()
        running.wait()
    train(build(), CountingData(), config(), directory=tmp_path)
