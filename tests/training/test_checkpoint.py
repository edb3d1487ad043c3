import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import tiny_model
import torch
from safetensors.torch import load_file
from tiny_model import CountingData, build, config, run
from torch import nn

from echo_ska.training import checkpoint as checkpoints
from echo_ska.training import train

TIMES = ("seconds", "tokens_per_second")


def final(directory):
    return checkpoints.list_checkpoints(directory)[-1]


def contents(directory):
    """The tensors of the last checkpoint, byte for byte, and the log without wall-clock figures."""
    files = [(final(directory) / name).read_bytes() for name in (checkpoints.MODEL, checkpoints.OPTIMIZER)]
    log = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    return files, [{key: value for key, value in entry.items() if key not in TIMES} for entry in log]


def snapshot(directory):
    return {path: path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A finished run of 40 steps."""
    directory = tmp_path_factory.mktemp("undisturbed")
    run(directory)
    return directory


def test_files_and_pruning(undisturbed):
    assert [path.name for path in checkpoints.list_checkpoints(undisturbed)] == ["step-000035", "step-000040"]
    assert {path.name for path in final(undisturbed).iterdir()} == {
        checkpoints.MODEL,
        checkpoints.OPTIMIZER,
        checkpoints.TRAINER,
        checkpoints.SUMS,
    }


def test_an_echo_killed_ten_times_at_random_moments_ends_with_the_same_bits(tmp_path, monkeypatch):
    steps, reference, killed = 300, tmp_path / "reference", tmp_path / "killed"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(tiny_model.__file__).parent), *sys.path]))
    # Processes of one that has imported everything: each starts in milliseconds.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tiny_model"])

    def start(directory):
        process = processes.Process(target=tiny_model.run_alone, args=(directory, steps))
        process.start()
        return process

    moments = random.Random()
    for _ in range(10):
        known = set(checkpoints.list_checkpoints(killed))
        process = start(killed)
        while process.is_alive() and not set(checkpoints.list_checkpoints(killed)) - known:
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.1))
        process.kill()  # SIGKILL
        process.join()
        assert process.exitcode == -signal.SIGKILL
    for directory in (killed, reference):
        process = start(directory)
        process.join()
        assert process.exitcode == 0
    assert contents(killed) == contents(reference)
    assert not list((killed / "checkpoints").glob(".*"))


def test_a_crash_between_any_two_file_operations_loses_nothing(tmp_path, undisturbed, monkeypatch):
    """The process "dies" at one flush, rename or deletion after another, and the run is started again."""
    real = {"fsync": os.fsync, "rename": Path.rename, "rmtree": shutil.rmtree}

    class Killed(BaseException):
        pass

    def crash_at(operation):
        calls = iter(range(10**6))

        def wrap(function):
            def counted(*arguments, **settings):
                if next(calls) == operation:
                    if function is real["rmtree"]:
                        next(arguments[0].iterdir()).unlink()  # dies half way
                    raise Killed
                return function(*arguments, **settings)

            return counted

        monkeypatch.setattr(os, "fsync", wrap(real["fsync"]))
        monkeypatch.setattr(Path, "rename", wrap(real["rename"]))
        monkeypatch.setattr(shutil, "rmtree", wrap(real["rmtree"]))

    per_checkpoint = 9  # six flushes, a rename, then a rename and a deletion
    for operation in range(7 + 7, 7 + 7 + 2 * per_checkpoint):  # the third and fourth checkpoints
        directory = tmp_path / str(operation)
        crash_at(operation)
        with pytest.raises(Killed):
            run(directory)
        for path in checkpoints.list_checkpoints(directory):
            checkpoints.read_checkpoint(path)  # whole or absent
        crash_at(-1)
        run(directory)
        assert contents(directory) == contents(undisturbed), f"after a crash at operation {operation}"


def test_a_half_written_checkpoint_is_ignored_and_removed(tmp_path, undisturbed):
    directory = tmp_path / "run"
    shutil.copytree(undisturbed, directory)
    partial = directory / "checkpoints" / ".partial-step-000045"
    partial.mkdir()
    (partial / checkpoints.MODEL).write_bytes(b"half")
    run(directory)
    assert not partial.exists()
    assert contents(directory) == contents(undisturbed)


def test_a_finished_run_is_not_repeated(tmp_path, undisturbed):
    before = snapshot(undisturbed)
    model, record = run(undisturbed)
    assert snapshot(undisturbed) == before
    assert record.figures["loss"] == contents(undisturbed)[1][-1]["loss"]
    assert torch.equal(model.embedding.weight, run(None)[0].embedding.weight)


@pytest.mark.parametrize("name", [checkpoints.MODEL, checkpoints.OPTIMIZER, checkpoints.TRAINER, checkpoints.SUMS])
@pytest.mark.parametrize("harm", ["flip a bit", "cut off", "delete"])
def test_a_damaged_file_is_refused_and_nothing_is_touched(tmp_path, undisturbed, name, harm):
    directory = tmp_path / "run"
    shutil.copytree(undisturbed, directory)
    path = final(directory) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x80
    if harm == "delete":
        path.unlink()
    else:
        path.write_bytes(data if harm == "flip a bit" else data[:-1])
    before = snapshot(directory)
    with pytest.raises(ValueError, match=r"^The checkpoint file .* is damaged .* delete the folder .*step-000040"):
        run(directory)
    assert snapshot(directory) == before
    shutil.rmtree(final(directory))
    run(directory)  # as the message advises
    assert contents(directory) == contents(undisturbed)


@pytest.mark.parametrize("name", [checkpoints.MODEL, checkpoints.OPTIMIZER, checkpoints.TRAINER, checkpoints.SUMS])
def test_a_byte_changed_anywhere_is_refused(tmp_path, undisturbed, name):
    folder = shutil.copytree(final(undisturbed), tmp_path / "step-000040")
    path = folder / name
    whole = path.read_bytes()
    for position in {*range(0, len(whole), 1 + len(whole) // 300), len(whole) - 1}:
        for flip in (1 << position % 8, 0x07):  # the second makes another line break of a line break
            data = bytearray(whole)
            data[position] ^= flip
            path.write_bytes(data)
            with pytest.raises(ValueError, match="is damaged"):
                checkpoints.read_checkpoint(folder)
    path.write_bytes(whole)
    checkpoints.read_checkpoint(folder)


def test_other_settings_are_refused_by_name(undisturbed):
    before = snapshot(undisturbed)
    other = config(learning_rate=1e-3, seed=1, log_every=7)
    with pytest.raises(ValueError, match=r"another data.seed, another training.learning_rate, another training.seed:"):
        train(build(), CountingData(seed=1), other, directory=undisturbed)
    with pytest.raises(ValueError, match=r"of another model: .*embedding.weight"):
        train(build(width=8), CountingData(), config(), directory=undisturbed)
    with pytest.raises(ValueError, match="already holds checkpoints"):
        train(build(), CountingData(), config(), directory=undisturbed, resume=False)
    assert snapshot(undisturbed) == before


def test_another_format_is_refused(tmp_path, undisturbed, monkeypatch):
    monkeypatch.setattr(checkpoints, "FORMAT", 2)
    with pytest.raises(ValueError, match="has format 1 and this version of echo-ska reads format 2"):
        run(undisturbed)


def test_tied_weights_are_saved_once_and_stay_tied(tmp_path, undisturbed):
    saved = load_file(final(undisturbed) / checkpoints.MODEL)
    assert "embedding.weight" in saved
    assert "head.weight" not in saved
    model, _ = run(undisturbed)
    assert model.head.weight is model.embedding.weight
    assert torch.equal(model.head.weight, saved["embedding.weight"])


def test_views_and_buffers_are_saved(tmp_path):
    class Views(nn.Module):
        def __init__(self, fill):
            super().__init__()
            whole = torch.full((4, 6), fill)
            self.left = nn.Parameter(whole[:, :3])
            self.right = nn.Parameter(whole[:, 3:].t())
            self.register_buffer("count", torch.tensor(int(fill)))
            self.register_buffer("passing", torch.tensor(fill), persistent=False)

    model, other = Views(1.0), Views(2.0)
    optimizers = [torch.optim.AdamW(module.parameters()) for module in (model, other)]
    path = checkpoints.save_checkpoint(tmp_path, 3, model, optimizers[0], {}, {}, keep=1)
    checkpoints.restore(checkpoints.read_checkpoint(path), other, optimizers[1])
    assert other.count == 1
    assert other.passing == 2.0
    assert torch.equal(other.left, model.left)
    assert torch.equal(other.right, model.right)


def test_a_checkpoint_that_cannot_be_written_says_so(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(OSError, match=r"step-000005 could not be written: No space left on device; make room, or"):
        run(tmp_path)
    assert not list((tmp_path / "checkpoints").iterdir())  # half of one would take the room for the next
