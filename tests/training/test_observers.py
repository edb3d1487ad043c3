"""Curves hold every step once, whatever was killed and resumed; read back by the tools' own readers."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from echo_ska.training import Throughput, open_observers
from echo_ska.training.checkpoint import save_checkpoint
from echo_ska.training.observers import TensorBoardObserver, WandbObserver, _kept_run, numbers


def entry(step, loss):
    return {"step": step, "loss": loss, "tokens_per_second": 100.0, "learning_rate": 1e-3, "seconds": 2.0 * step}


def checkpoint(directory, step):
    model = torch.nn.Linear(1, 1)
    save_checkpoint(directory, step, model, torch.optim.AdamW(model.parameters()), {}, {}, keep=1)


def test_numbers_of_an_entry_have_names_for_curves():
    found = numbers(
        {
            "step": 4,
            "loss": 1.5,
            "accuracy": float("nan"),
            "flag": True,
            "evaluation": {"recall": {"64": 1}, "samples": ["a"], "bits_per_byte": 2.5},
        }
    )
    assert found == {"training/loss": 1.5, "evaluation/recall/64": 1.0, "evaluation/bits_per_byte": 2.5}


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"pip install 'echo-ska\[tracking\]'"):
        TensorBoardObserver(tmp_path)
    with (
        pytest.raises(ValueError, match=r"pip install 'echo-ska\[wandb\]'"),
        open_observers(tmp_path, wandb_project="echo"),
    ):
        pass


def curves(folder):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    accumulator = reader.EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    tags = accumulator.Tags()["scalars"]
    return {tag: [(event.step, round(event.value, 6)) for event in accumulator.Scalars(tag)] for tag in tags}


def test_tensorboard_holds_every_step_once_after_a_kill(tmp_path):
    pytest.importorskip("tensorboard", reason="pip install 'echo-ska[tracking]'")
    throughput = Throughput(1e3, 1e6, torch.device("cpu"))
    with open_observers(tmp_path, tensorboard=True, throughput=throughput) as observers:
        for step in (10, 20, 30):
            observers.log(entry(step, loss=1.0))
        observers.log({"step": 30, "evaluation": {"bits_per_byte": 2.5}})
    checkpoint(tmp_path, 20)  # the newest that was whole
    with open_observers(tmp_path, tensorboard=True, throughput=throughput) as observers:
        for step in (30, 40):
            observers.log(entry(step, loss=0.5))
    found = curves(tmp_path)
    assert found["training/loss"] == [(10, 1.0), (20, 1.0), (30, 0.5), (40, 0.5)]
    assert found["training/mfu"] == [(step, 0.1) for step in (10, 20, 30, 40)]
    assert found["training/learning_rate"][-1] == (40, 0.001)
    assert [step for step, _ in found["training/peak_memory_bytes"]] == [10, 20, 30, 40]
    assert found["evaluation/bits_per_byte"] == []  # it was of step 30, which is done again


def test_tensorboard_forgets_a_run_that_died_before_its_first_checkpoint(tmp_path):
    pytest.importorskip("tensorboard", reason="pip install 'echo-ska[tracking]'")
    for loss in (1.0, 0.5):
        with open_observers(tmp_path, tensorboard=True) as observers:
            observers.log(entry(10, loss))
    assert curves(tmp_path)["training/loss"] == [(10, 0.5)]


def records(path):
    """The records of a .wandb file: seven bytes of its own, then LevelDB's log format in blocks of 32 KiB."""
    data, place, whole = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while place + 7 <= len(data):
        if (left := 32_768 - place % 32_768) < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)  # behind a checksum
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece of one
            yield whole
            whole = b""


def history(folder):
    """What the offline files of all of a run's starts hold: (step, loss) in their order, and the runs' ids."""
    from wandb.proto.wandb_internal_pb2 import Record

    logged, ids = [], set()
    for path in sorted((folder / "wandb").rglob("*.wandb")):
        for data in records(path):
            record = Record.FromString(data)
            if record.HasField("run"):
                ids.add(record.run.run_id)
            if record.HasField("history"):
                items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
                if "training/loss" in items:
                    step = json.loads(items["_step"]) if "_step" in items else record.history.step.num
                    logged.append((step, json.loads(items["training/loss"])))
    return logged, ids


LOG_LOSSES = """
import sys
from echo_ska.training import open_observers

with open_observers(sys.argv[1], wandb_project="echo", configuration={"steps": 40}) as observers:
    for step in sys.argv[3:]:
        observers.log({"step": int(step), "loss": float(sys.argv[2])})
    observers.log({"step": int(step), "evaluation": {"bits_per_byte": 2.5}})
"""


def test_wandb_goes_on_in_the_same_run_with_every_step_once(tmp_path):
    pytest.importorskip("wandb", reason="pip install 'echo-ska[wandb]'")
    environment = os.environ | {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    for loss, steps in (("1.0", ("10", "20", "30")), ("0.5", ("30", "40"))):
        command = [sys.executable, "-c", LOG_LOSSES, str(tmp_path), loss, *steps]
        subprocess.run(command, env=environment, check=True, capture_output=True)
    logged, ids = history(tmp_path)
    assert logged == [(10, 1.0), (20, 1.0), (30, 1.0), (40, 0.5)]
    assert len(ids) == 1


def test_wandb_is_told_an_evaluation_that_a_kill_kept_from_it(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"id": "a", "step": 30, "evaluation": 20}))
    told = []
    observer = WandbObserver.__new__(WandbObserver)
    observer._path, observer._run = tmp_path / "run.json", SimpleNamespace(log=lambda found, step: told.append(step))
    observer._kept = _kept_run(observer._path, {"rate": 1.0}, steps_done=20)
    observer.log(entry(30, loss=1.0))
    observer.log({"step": 30, "evaluation": {"bits_per_byte": 2.5}})
    observer.log(entry(40, loss=1.0))
    assert told == [30, 40]
    written = json.loads((tmp_path / "run.json").read_text())
    assert (written["id"], written["step"], written["evaluation"]) == ("a", 40, 30)


def test_wandb_goes_on_in_its_run_unless_another_training_begins(tmp_path):
    path = tmp_path / "run.json"
    first = _kept_run(path, {"rate": 1.0}, 0)
    path.write_text(json.dumps(first | {"step": 300}))
    assert _kept_run(path, {"rate": 1.0}, 0)["step"] == 300  # killed before its first checkpoint, and the same again
    assert _kept_run(path, {"rate": 0.5}, 250)["id"] == first["id"]  # from a checkpoint
    other = _kept_run(path, {"rate": 0.5}, 0)
    assert other["id"] != first["id"]
    assert other["step"] == 0
    assert json.loads(path.read_text()) == other


def test_a_run_whose_identity_is_damaged_is_refused(tmp_path):
    pytest.importorskip("wandb", reason="pip install 'echo-ska[wandb]'")
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ValueError, match=r"run.json does not hold a run's id and step: delete it"):
        WandbObserver(tmp_path, "echo")
