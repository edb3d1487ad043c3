"""The notebook runs in a fresh kernel, and the outputs stored in it are those of such a run."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
TOUR = FOLDER / "tour.ipynb"
LARGEST = 600_000
MACHINE = re.compile(r"(?<![\w.])/(?:home|Users|root|tmp|var|opt|mnt|srv)/|site-packages|[A-Z]:\\\\")


@pytest.fixture(scope="module")
def stored():
    return json.loads(TOUR.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def anew():
    """The notebook after a run that trains for two steps, which its first cell says is what tests do."""
    for needed in ("nbclient", "ipykernel"):
        pytest.importorskip(needed, reason="pip install 'echo-ska[notebook]'")
    specification = importlib.util.spec_from_file_location("execute", FOLDER / "execute.py")
    execute = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(execute)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ECHO_SKA_TOUR_STEPS", "2")
        patch.setenv("OMP_NUM_THREADS", "1")
        return execute.executed(TOUR)


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def kinds(cell):
    return [output.get("name") or sorted(output["data"]) for output in cell["outputs"]]


def text(notebook):
    found = (output.get("text", "") for cell in code_cells(notebook) for output in cell["outputs"])
    return "".join(piece if isinstance(piece, str) else "".join(piece) for piece in found)


def test_every_cell_runs_and_gives_what_the_stored_one_gave(stored, anew):
    assert "step   2 of 2" in text(anew)
    assert [kinds(cell) for cell in code_cells(anew)] == [kinds(cell) for cell in code_cells(stored)]


def test_the_stored_outputs_are_of_one_whole_run(stored):
    cells = code_cells(stored)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert "step 150 of 150" in text(stored)
    found = {
        kind for cell in cells for output in kinds(cell) for kind in ([output] if isinstance(output, str) else output)
    }
    assert found == {"stdout", "image/png", "text/plain"}  # no errors, no warnings


def test_what_the_notebook_shows_is_what_its_text_says(stored):
    shown = text(stored)
    assert "False" not in shown
    assert "wrong" not in shown
    accuracies = dict(re.findall(r"(\d[\d,]*): ([\d.]+) %", shown))
    assert list(accuracies) == ["64", "256", "1,024", "4,096"]
    assert all(float(percent) > 95 for percent in accuracies.values())
    asked = re.findall(r"asked for key .*:\s+(\d+)   stored:\s+(\d+)", shown)
    assert len(asked) == 3
    assert all(said == kept for said, kept in asked)


def test_the_file_is_small_and_tells_of_no_machine(stored):
    written = TOUR.read_text(encoding="utf-8")
    assert len(written.encode()) < LARGEST
    assert not MACHINE.search(written)
    assert stored["metadata"]["language_info"] == {"name": "python"}
    assert all(cell["metadata"] == {} for cell in stored["cells"])


def test_its_links_lead_somewhere(stored):
    prose = "".join("".join(cell["source"]) for cell in stored["cells"] if cell["cell_type"] == "markdown")
    links = re.findall(r"\]\(([^)#]+)\)", prose)
    assert len(links) >= 5
    assert not [link for link in links if not link.startswith("http") and not (FOLDER / link).exists()]
