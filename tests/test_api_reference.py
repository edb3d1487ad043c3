"""Every public name has a docstring, and the API reference shows it, on pages that need no network."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import echo_ska

CHECKOUT = Path(__file__).parents[1]
PACKAGE = Path(echo_ska.__file__).parent
ROOMS = (
    "ops",
    "algebra",
    "nn",
    "models",
    "parallel",
    "memory",
    "tasks",
    "training",
    "corpus",
    "evaluation",
    "convert",
    "serving",
    "experiments",
)


def module_name(path: Path) -> str:
    return ".".join(["echo_ska", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")


def public_names() -> dict[str, list[str]]:
    """By module: what its `__all__` names; in the public packages without one, what their modules define."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        given = [
            ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        ]
        defined = [node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
        if given:
            found[module_name(path)] = given[0]
        elif path.parent in (PACKAGE / "evaluation", PACKAGE / "serving"):
            found[module_name(path)] = [name for name in defined if not name.startswith("_")]
    return found


PUBLIC = public_names()
SHOWN = {module: names for module, names in PUBLIC.items() if module.split(".")[1] in ROOMS and module.count(".") == 1}
SHOWN |= {module: names for module, names in PUBLIC.items() if module.split(".")[1] in ("evaluation", "serving")}


def variable_docstring(module: str, name: str) -> str | None:
    """The text below an assignment, followed through the imports that pass the name on."""
    tree = ast.parse(Path(inspect.getfile(importlib.import_module(module))).read_text(encoding="utf-8"))
    for node, following in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            return variable_docstring(str(node.module), name)
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if target is not None and ast.unparse(target) == name and isinstance(following, ast.Expr):
            return following.value.value if isinstance(following.value, ast.Constant) else None
    return None


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_has_a_docstring(module):
    assert inspect.getdoc(importlib.import_module(module)), f"{module} has no docstring"
    for name in PUBLIC[module]:
        value = getattr(importlib.import_module(module), name)
        own = vars(value).get("__doc__") if isinstance(value, type) else getattr(value, "__doc__", None)
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            own = variable_docstring(module, name)
        assert own, f"{module}.{name} has no docstring of its own"


def test_the_table_of_public_names_is_not_empty():
    assert {f"echo_ska.{room}" for room in ROOMS} <= set(SHOWN)
    assert len(SHOWN["echo_ska.ops"]) >= 9
    assert "recall_accuracy" in SHOWN["echo_ska.evaluation.recall"]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The built pages by module; a warning of pdoc would have ended the build."""
    pytest.importorskip("pdoc", reason="pip install 'echo-ska[docs]' to build the API reference")
    folder = tmp_path_factory.mktemp("api")
    command = [sys.executable, str(CHECKOUT / "docs" / "api" / "build.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (folder / "index.html").exists()
    texts = {path: path.read_text(encoding="utf-8") for path in folder.rglob("*.html")}
    return {".".join(path.relative_to(folder).with_suffix("").parts): text for path, text in texts.items()}


def test_every_public_name_is_shown(pages):
    missing = [
        f"{module}.{name}" for module, names in SHOWN.items() for name in names if f'id="{name}"' not in pages[module]
    ]
    assert not missing


def test_sections_and_names_are_rendered(pages):
    page = pages["echo_ska.ops"]
    assert "<strong>write_weight:</strong>" in page  # a row of "Args:"
    assert re.search(r"<code><a href=[^>]*>RecurrentState</a></code>", page)  # `RecurrentState`
    assert "Initialize internal Module state" not in pages["echo_ska.nn"]  # torch's own docstring
    docstrings = re.findall(r'<div class="docstring">(.*?)</div>', "".join(pages.values()), re.DOTALL)
    assert len(docstrings) > 200
    for text in docstrings:
        prose = re.sub(r"<pre>.*?</pre>|<div class=\"codehilite\">.*", "", text, flags=re.DOTALL)
        assert "`" not in prose, prose
        # A line of prose that begins with ">" would be a quotation; those of "Returns:" are.
        assert not re.search(r"(?<!</h6>)\s*\n\s*<blockquote>", re.sub(r"</h6>\s*<blockquote>", "</h6>", prose)), prose


def test_nothing_private_is_listed(pages):
    rooms = {module.split(".")[1] for module in pages if "." in module}
    assert rooms == set(ROOMS)
    assert not [module for module in pages if any(part.startswith("_") for part in module.split("."))]
    shown = {found for page in pages.values() for found in re.findall(r'<section id="([^"]+)"', page)}
    assert shown
    assert not [name for name in shown if name.startswith("_")]


def test_the_pages_need_no_network(pages):
    for module, page in pages.items():
        loaded = re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"(https?:[^\"]*)", page)
        assert not loaded, f"{module} loads {loaded}"
