"""`echo-ska report`: every claim and what the records say of it, as one page of HTML."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from echo_ska.experiments.claims import Level
from echo_ska.experiments.report import write_report

STYLES = {
    Level.REPRODUCED: "green",
    Level.PARTLY: "yellow",
    Level.NOT_REPRODUCED: "red",
    Level.IN_PART: "blue",
    Level.UNMEASURED: "dim",
}


def report(results: Path, output: Path, console: Console) -> None:
    """Write the page and print the verdicts.

    Raises:
        ValueError: the folder is missing, or records in it cannot be read.
    """
    if not results.is_dir():
        raise ValueError(f"--results {results} is not a folder: name the one that holds the records, such as results.")
    if not any(results.glob("*.jsonl")):
        raise ValueError(f"--results {results} holds no record (*.jsonl): name the folder that does, such as results.")
    weighed = write_report(results, output)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("claim")
    table.add_column("verdict")
    for found in weighed:
        level = found.verdict.level
        name = f"{found.claim.key}: {found.claim.title}" if found.claim.key.isdigit() else found.claim.title
        table.add_row(Text(name), Text(level, style=STYLES[level]))
    console.print(table)
    console.print(Text(f"Written to {output}."), soft_wrap=True)
