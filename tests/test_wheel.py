"""The wheel and the source distribution hold what they should, and nothing else; `make check-wheel` installs it."""

from __future__ import annotations

import email
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import echo_ska

CHECKOUT = Path(__file__).parents[1]
# One of each kind that is not Python: without it an installed package would lack what it needs at run time.
NEEDED = (
    "echo_ska/py.typed",
    "echo_ska/ops/native/kernels.c",
    "echo_ska/ops/native/products.h",
    "echo_ska/data/accelerate/fsdp2.yaml",
    "echo_ska/data/books/Conrad_Almayer_1895.txt",
    "echo_ska/evaluation/lm_eval_tasks/hellaswag_local.yaml",
)


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """(wheel, source distribution): the wheel is built from the latter, as pip does where there is no wheel."""
    pytest.importorskip("build", reason="pip install build hatchling")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(CHECKOUT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, source


@pytest.fixture(scope="module")
def wheel(distributions):
    with zipfile.ZipFile(distributions[0]) as archive:
        yield archive


@pytest.fixture(scope="module")
def source_names(distributions):
    with tarfile.open(distributions[1]) as archive:
        return {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}


def package_files() -> set[str]:
    files = (path for path in (CHECKOUT / "src" / "echo_ska").rglob("*") if path.is_file())
    return {path.relative_to(CHECKOUT / "src").as_posix() for path in files if "__pycache__" not in path.parts}


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    information = f"echo_ska-{echo_ska.__version__}.dist-info"
    names = {name for name in wheel.namelist() if not name.startswith(f"{information}/")}
    assert names == package_files()
    assert set(NEEDED) <= names
    licences = {f"{information}/licenses/{name}" for name in ("LICENSE", "NOTICE")}
    assert licences <= set(wheel.namelist())


def test_the_files_of_the_wheel_are_those_of_the_checkout(wheel):
    for name in NEEDED:
        assert wheel.read(name) == (CHECKOUT / "src" / name).read_bytes()


def test_the_wheel_says_what_it_needs(wheel):
    (metadata,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
    said = email.message_from_bytes(wheel.read(metadata))
    assert said["Version"] == echo_ska.__version__
    assert said["License-Expression"] == "Apache-2.0"
    needs = said.get_all("Requires-Dist")
    always = {re.split("[<>=]", need)[0] for need in needs if "extra ==" not in need}
    # What is not listed here belongs into an extra: nobody should have to install it to use the layer.
    assert always == {
        "accelerate",
        "jinja2",
        "matplotlib",
        "numpy",
        "rich",
        "safetensors",
        "torch",
        "transformers",
        "typer",
    }
    extras = {"dev", "gpu", "cpu", "data", "eval", "huggingface", "serve", "sklearn", "docs", "notebook"}
    extras |= {"tracking", "wandb", "deepspeed"}
    assert extras <= set(said.get_all("Provides-Extra"))
    (entry_points,) = (name for name in wheel.namelist() if name.endswith("/entry_points.txt"))
    assert "echo-ska = echo_ska.cli:main" in wheel.read(entry_points).decode()


def test_the_source_distribution_can_be_built_and_tested(source_names):
    assert {f"src/{name}" for name in package_files()} <= source_names
    assert {"LICENSE", "NOTICE", "README.md", "CHANGELOG.md", "constraints.txt", "Makefile"} <= source_names
    assert {"tests/conftest.py", "docs/method.md", "docs/api/build.py", "notebooks/tour.ipynb"} <= source_names
    unwanted = ("results", "build", "runs", "dist", ".venv", "__pycache__", ".ruff_cache", ".mypy_cache")
    assert not [name for name in source_names if set(name.split("/")) & set(unwanted)]
    assert not [name for name in source_names if name.endswith((".pyc", ".so"))]
