"""Builds the API reference from the docstrings, as pages that need no network: `make api`, or

    python docs/api/build.py [FOLDER]

Beside pdoc this does four things: names that a package imports when they are first asked for are asked for; a variable
that a package passes on gets the docstring it has where it is defined; texts of torch and Python stay out; and whatever
pdoc cannot make sense of ends the build.
"""

from __future__ import annotations

import ast
import importlib
import shutil
import sys
import types
import warnings
from pathlib import Path

import pdoc
import pdoc.doc
import pdoc.extract
import pdoc.render

import echo_ska

CHECKOUT = Path(__file__).parents[2]
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
# Modules whose docstrings draw or tabulate what their package's page names alone.
PAGES = ("models.presets", "training.recipes", "tasks.mqar", "tasks.mqar_grid")


def main(folder: Path) -> None:
    """Write the pages into `folder`, which is emptied first."""
    pdoc.render.configure(
        docformat="google", template_directory=Path(__file__).parent, footer_text=f"echo-ska {echo_ska.__version__}"
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        documented = {name: document(name) for name in public_modules()}
        pages = {name: pdoc.render.html_module(page, documented) for name, page in documented.items()}
        index, search = pdoc.render.html_index(documented), pdoc.render.search_index(documented)
    odd = sorted({str(warning.message) for warning in caught if "pdoc" in Path(warning.filename).parts})
    if odd:
        raise SystemExit("pdoc cannot make sense of this, so nothing was written:\n" + "\n".join(odd))
    if folder.exists():
        shutil.rmtree(folder)
    for name, page in pages.items():
        path = folder / f"{name.replace('.', '/')}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    (folder / "index.html").write_text(index, encoding="utf-8")
    (folder / "search.js").write_text(search, encoding="utf-8")
    print(f"{len(pages)} pages: {folder / 'index.html'}")


def public_modules() -> list[str]:
    """The package, its public rooms, and the modules of those that have no `__all__` of their own."""
    names = ["echo_ska"]
    for room in ROOMS:
        package = importlib.import_module(f"echo_ska.{room}")
        names.append(package.__name__)
        if not hasattr(package, "__all__"):
            names += sorted(pdoc.extract.walk_specs([package.__name__, f"!{package.__name__}$"]))
    return [*names, *(f"echo_ska.{page}" for page in PAGES)]


def document(name: str) -> pdoc.doc.Module:
    """A module as pdoc sees it, with what it cannot see by itself."""
    module = importlib.import_module(name)
    for public in getattr(module, "__all__", ()):
        vars(module)[public] = getattr(module, public)  # some are imported only now
    page = pdoc.doc.Module(module)
    page.submodules = [below for below in page.submodules if below.name not in getattr(module, "__all__", ())]
    for kind in page.classes:
        prepare(kind)
    for member, origin in passed_on(module).items():
        variable = page.get(member)
        if isinstance(variable, pdoc.doc.Variable) and not variable.docstring:
            original = pdoc.doc.Module(importlib.import_module(origin)).get(member)
            assert isinstance(original, pdoc.doc.Variable), f"{origin}.{member}"
            variable.docstring, variable.annotation = original.docstring, original.annotation
    return page


def prepare(kind: pdoc.doc.Class) -> None:
    """Keep texts that are not ours away: the class says what its constructor takes and what its fields are."""
    constructor = kind.get("__init__")
    if issubclass(kind.obj, tuple):  # a named tuple: Python writes "Alias for field number 0"
        kind.obj.__new__.__module__ = kind.obj.__module__  # where its annotations are understood
        for field in kind.obj._fields:
            kind.members[field].docstring = ""
    own = vars(kind.obj).get("__init__")
    if constructor is not None and (own is None or not own.__doc__):  # else it inherits torch's
        constructor.docstring = ""


def passed_on(module: types.ModuleType) -> dict[str, str]:
    """The names of `__all__` that come from another module, and that module."""
    public = set(getattr(module, "__all__", ()))
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    imports = (node for node in tree.body if isinstance(node, ast.ImportFrom))
    return {alias.name: str(node.module) for node in imports for alias in node.names if alias.name in public}


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else CHECKOUT / "build" / "api")
