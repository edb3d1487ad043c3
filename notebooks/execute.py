"""Executes a notebook anew and keeps its outputs: `make notebook`, or

    python notebooks/execute.py [NOTEBOOK]

What would change from run to run and from machine to machine (times, versions, paths) is not kept.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

TOUR = Path(__file__).parent / "tour.ipynb"
SECONDS_A_CELL = 900


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of a fresh kernel; a cell that fails raises nbclient's CellExecutionError."""
    notebook = nbformat.read(path, as_version=4)
    # The kernel starts in the notebook's folder, as Jupyter's does; no timing is written into the cells.
    client = NotebookClient(
        notebook,
        timeout=SECONDS_A_CELL,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute()
    return clean(notebook)


def clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without what tells of a machine rather than of the notebook."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata = {}
    nbformat.validate(notebook)
    return notebook


if __name__ == "__main__":
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else TOUR
    notebook = executed(path)
    nbformat.write(notebook, path)
    print(f"{path}: {sum(cell.cell_type == 'code' for cell in notebook.cells)} cells, {path.stat().st_size:,} bytes")
