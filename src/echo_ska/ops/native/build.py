"""Compiles the C kernels where they run, once, and loads them."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

SOURCES = ("kernels.c", "products.h", "attention.h", "gradients.h", "step.h")
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
COMPILE_SECONDS = 300


def _fields(struct: str) -> list[tuple[str, type]]:
    """The fields of a C struct, numbers and addresses, as kernels.c declares them."""
    text = (Path(__file__).parent / "kernels.c").read_text(encoding="utf-8")
    body = text[: text.index(f"}} {struct};")].rpartition("typedef struct {")[2]
    lines = re.sub(r"/\*.*?\*/", "", body, flags=re.DOTALL).split(";")
    numbers = {"int64_t": ctypes.c_int64, "double": ctypes.c_double}
    return [
        (name, ctypes.c_void_p if star else numbers[line.split()[0]])
        for line in lines
        for star, name in re.findall(r"(\*?)(\w+)(?:,|$)", line.strip())
    ]


class Pointers(ctypes.Structure):
    """A C struct of numbers and addresses of tensors."""

    def point(self, **tensors: Tensor | None) -> None:
        """Set addresses, and keep the tensors alive as long as this call; None and empty tensors become null."""
        for name, tensor in tensors.items():
            assert tensor is None or tensor.is_contiguous()
            setattr(self, name, tensor.data_ptr() or None if tensor is not None and tensor.numel() else None)
            self.__dict__[f"{name}_tensor"] = tensor


class Call(Pointers):
    """One call of the reads; kernels.c says what its fields are."""

    _fields_ = _fields("Call")


class Step(Pointers):
    """One decoded token of every head; kernels.c says what its fields are."""

    _fields_ = _fields("Step")


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled kernels. The first call on a machine compiles them (a few seconds) into the user's cache folder.

    The folder is $ECHO_SKA_CACHE, or echo_ska in the user's cache folder ($XDG_CACHE_HOME, ~/.cache). The compiler is
    $CC, cc, gcc or clang, or that of the Python package `ziglang`; on Windows neither cc nor gcc unless $CC names it.

    Raises:
        RuntimeError: there is no compiler, or it fails; the message holds what it said.
    """
    compiler = _compiler()
    if compiler is None:
        raise RuntimeError("there is no C compiler: install gcc or clang, or `pip install ziglang`, or set CC")
    folder = Path(__file__).parent
    identity = hashlib.sha256("\0".join([*compiler, *FLAGS, _processor()]).encode())
    for name in SOURCES:
        identity.update((folder / name).read_bytes())
    path = _cache_folder() / f"kernels-{identity.hexdigest()[:20]}.so"
    if not path.exists():
        _compile(compiler, folder / SOURCES[0], path)
    loaded = ctypes.CDLL(str(path))
    for function in (loaded.echo_ska_scratch_bytes, loaded.echo_ska_anchor_size, loaded.echo_ska_row_size):
        function.argtypes, function.restype = [ctypes.POINTER(Call)], ctypes.c_int64
    loaded.echo_ska_step.argtypes = [ctypes.POINTER(Step), ctypes.c_int64, ctypes.c_void_p]
    loaded.echo_ska_step.restype = None
    loaded.echo_ska_work.argtypes, loaded.echo_ska_work.restype = [ctypes.POINTER(Call), ctypes.c_void_p], None
    loaded.echo_ska_work_together.argtypes = [
        *(ctypes.POINTER(Call), ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
    ]
    loaded.echo_ska_work_together.restype = None
    loaded.echo_ska_expect_large.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    loaded.echo_ska_expect_large.restype = None
    return loaded


@torch.compiler.assume_constant_result
def why_unavailable() -> str | None:
    """None where the kernels can be used, else the reason."""
    return _failure()


@functools.cache
def _failure() -> str | None:
    try:
        library()
    except (RuntimeError, OSError) as error:
        return str(error)
    return None


def _compiler() -> list[str] | None:
    chosen = os.environ.get("CC")
    if chosen:
        return chosen.split()
    # On Windows gcc spills AVX registers to where the stack is not aligned for them (GCC bug 54412), and crashes.
    for name in ("clang",) if sys.platform == "win32" else ("cc", "gcc", "clang"):
        if shutil.which(name):
            return [name]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc"]
    return None


def _compile(compiler: list[str], source: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, partial = tempfile.mkstemp(dir=path.parent, suffix=".so")
    os.close(descriptor)
    try:
        command = [*compiler, *FLAGS, "-o", partial, str(source), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS)
        if done.returncode:
            raise RuntimeError(f"{' '.join(compiler)} could not compile the CPU kernels:\n{done.stderr[-2000:]}")
        os.replace(partial, path)  # at once, so that no other process loads half a file
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{' '.join(compiler)} took over {COMPILE_SECONDS} s for the CPU kernels") from None
    except FileNotFoundError:
        raise RuntimeError(f"the C compiler {compiler[0]!r} of $CC was not found") from None
    finally:
        Path(partial).unlink(missing_ok=True)


def _cache_folder() -> Path:
    chosen = os.environ.get("ECHO_SKA_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "echo_ska"


def _processor() -> str:
    """What the machine code was compiled for: a home folder may be shared by several machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.system()} {platform.machine()} {platform.processor()} {flags}"
