"""Run the kernels on a GPU if there is one, else in Triton's interpreter on the CPU."""

from __future__ import annotations

import importlib.util
import os
import sys

import pytest
import torch

ON_GPU = torch.cuda.is_available()
if not ON_GPU:
    os.environ.setdefault("TRITON_INTERPRET", "1")


def _unusable() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    import triton.language as tl
    from triton.runtime.interpreter import InterpretedFunction

    if not ON_GPU and not isinstance(tl.sum, InterpretedFunction):
        return "triton was imported before TRITON_INTERPRET=1 was set: set it in the environment of pytest"
    return None


UNUSABLE = _unusable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if UNUSABLE is not None:
        for item in items:
            if "triton" in item.path.parts:
                item.add_marker(pytest.mark.skip(reason=UNUSABLE))


@pytest.fixture(scope="session")
def device() -> str:
    return "cuda" if ON_GPU else "cpu"


@pytest.fixture(autouse=True)
def unwritten_is_nan(monkeypatch):
    """Memory from `torch.empty` and its like holds NaN, so that a number which no kernel wrote shows."""

    def poisoned(allocate):
        def allocated(*args, **keywords):
            tensor = allocate(*args, **keywords)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor.fill_(-1)

        return allocated

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))


@pytest.fixture(autouse=True, scope="session")
def interpreter_prepares_once():
    """Half the time: the interpreter looks through triton.language again for every device function a kernel calls."""
    interpreter = sys.modules.get("triton.runtime.interpreter")
    if ON_GPU or interpreter is None or not hasattr(interpreter, "_LangPatchScope"):
        yield
        return
    import triton.language as tl

    prepare = interpreter._patch_lang
    prepared: set[int] = set()

    class Scope:
        def __init__(self, inner):
            self.inner = inner

        def restore(self):
            if self.inner is not None:
                self.inner.restore()
                prepared.clear()

    def prepare_once(function):
        modules = {id(value) for value in function.__globals__.values() if value is tl or value is tl.core}
        if modules <= prepared:
            return Scope(None)
        prepared.update(modules)
        return Scope(prepare(function))

    interpreter._patch_lang = prepare_once
    yield
    interpreter._patch_lang = prepare
