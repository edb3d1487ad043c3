"""What is not Linux must not stop the package: it is used here with those parts of Python gone that only POSIX has."""

from __future__ import annotations

import subprocess
import sys

import pytest

from echo_ska.ops.native import build

# Gone on Windows, and some of it on macOS. Libraries are imported first: they ask for the platform.
WITHOUT = """
import importlib, os, pkgutil, sys
import accelerate, matplotlib.figure, rich.progress, sklearn, starlette.routing, torch, transformers.generation, uvicorn
import echo_ska
for name in ("fcntl", "resource", "pwd", "grp", "termios", "pty", "posix"):
    sys.modules[name] = None
for name in ("fork", "register_at_fork", "sched_getaffinity"):
    delattr(os, name)
found = [module.name for module in pkgutil.walk_packages(echo_ska.__path__, "echo_ska.")]
for name in found:
    if ".triton." not in name:  # triton is for Linux alone
        importlib.import_module(name)
"""
USED = """
from pathlib import Path
import torch
from echo_ska.memory import ContextState, ContextStore
from echo_ska.models import EchoConfig, EchoForCausalLM
from echo_ska.training.records import describe_hardware, usable_cores
sizes = {"hidden_size": 16, "num_hidden_layers": 3, "ska_layers": [1], "num_heads": 2, "rank": 4, "state_size": 4}
model = EchoForCausalLM(EchoConfig(vocab_size=32, **sizes)).eval()
store = ContextStore(Path(sys.argv[1]) / "store")
read = store.read(model, torch.arange(20))
state, known = store.find(model, torch.arange(25))
assert known == 20 and torch.equal(state.logits(model), read.logits(model))
assert usable_cores() >= 1 and describe_hardware()["cores"] >= 1
model.save_pretrained(Path(sys.argv[1]) / "model")
EchoForCausalLM.from_pretrained(Path(sys.argv[1]) / "model")
print(len(found), "modules")
"""


def test_it_imports_and_works_without_what_only_posix_has(tmp_path):
    for needed in ("sklearn", "starlette", "uvicorn"):
        pytest.importorskip(needed)
    done = subprocess.run([sys.executable, "-c", WITHOUT + USED, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 100


def test_no_gcc_on_windows_unless_it_is_asked_for(monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr("shutil.which", lambda name: None if name == "clang" else f"/usr/bin/{name}")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert build._compiler() == ["cc"]
    monkeypatch.setattr("sys.platform", "win32")
    assert build._compiler() is None
    monkeypatch.setenv("CC", "gcc")
    assert build._compiler() == ["gcc"]


def test_checksums_have_the_same_bytes_everywhere(tmp_path, monkeypatch):
    from echo_ska.sealed import SUMS, broken_sum, write_sums

    (tmp_path / "file").write_bytes(b"contents")
    # On Windows text is written with other line ends; here any writing of text would fail.
    monkeypatch.setattr("pathlib.Path.write_text", lambda *_, **__: pytest.fail("written as text"))
    write_sums(tmp_path, ["file"])
    assert (tmp_path / SUMS).read_bytes().endswith(b"  file\n")
    assert broken_sum(tmp_path) is None
