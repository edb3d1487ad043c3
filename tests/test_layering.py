"""Imports point one way, and the op needs nothing but torch."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import echo_ska

PACKAGE = Path(echo_ska.__file__).parent
# Each room may import the rooms named here (and itself).
ALLOWED = {
    "sealed": set(),
    "algebra": set(),
    "ops": {"algebra"},
    "nn": {"algebra", "ops"},
    "models": {"sealed", "algebra", "ops", "nn"},
    "memory": {"sealed", "algebra", "ops", "nn", "models"},
    "parallel": {"algebra", "ops", "nn", "models"},
    "tasks": set(),
    "training": {"sealed", "algebra", "ops", "nn", "models", "parallel", "tasks"},
    "corpus": {"sealed", "models", "training"},
    "evaluation": {"sealed", "algebra", "ops", "nn", "models", "tasks", "training"},
    "convert": {"algebra", "ops", "nn", "models", "tasks", "training"},
    "serving": {"sealed", "algebra", "ops", "nn", "models", "memory", "evaluation"},
    "benchmarks": {"algebra", "ops", "nn", "models", "memory", "training", "evaluation"},
    "experiments": {
        "sealed",
        "algebra",
        "ops",
        "nn",
        "models",
        "memory",
        "tasks",
        "training",
        "evaluation",
        "convert",
        "benchmarks",
        "parallel",
    },
}
TORCH_ONLY = ("algebra", "ops", "tasks")


def imported_modules(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import by full name, so that this test can follow it"
            found.add(node.module or "")
    return found


def test_imports_point_one_way():
    for room, allowed in ALLOWED.items():
        for path in (PACKAGE / room).rglob("*.py"):
            for module in imported_modules(path):
                parts = module.split(".")
                if parts[0] == "echo_ska" and len(parts) > 1:
                    assert parts[1] in allowed | {room}, f"{path.relative_to(PACKAGE)} imports {module}"


def test_no_modules_import_each_other_in_a_circle():
    """Imports inside functions count too."""
    names = {}
    for path in PACKAGE.rglob("*.py"):
        parts = (PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts)
        names[".".join(parts).removesuffix(".__init__")] = path
    graph = {}
    for name, path in names.items():
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        for node in nodes:
            if isinstance(node, ast.ImportFrom):
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= {one if one in names else str(node.module) for one in inner}
        graph[name] = found & set(names) - {name}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_every_room_is_known():
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    assert rooms - {"data", "commands", "cli"} == set(ALLOWED)


def test_the_inner_rooms_need_torch_alone():
    standard = set(sys.stdlib_module_names)
    for room in TORCH_ONLY:
        for path in (PACKAGE / room).rglob("*.py"):
            outside = {module.split(".")[0] for module in imported_modules(path)} - standard
            if (PACKAGE / "ops" / "triton") in path.parents:  # imported where it is used alone: see the test below
                outside -= {"triton"}
            assert outside <= {"torch", "echo_ska"}, f"{path.relative_to(PACKAGE)} imports {outside}"


def test_the_op_imports_without_transformers_triton_or_matplotlib():
    code = (
        "import sys\n"
        "for name in ('transformers', 'triton', 'matplotlib', 'accelerate'): sys.modules[name] = None\n"
        "import torch, echo_ska.ops, echo_ska.nn\n"
        "x = torch.ones(1, 3, 1, 2)\n"
        "echo_ska.ops.spectral_koopman_attention(x, x, x, ridge=1.0)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
