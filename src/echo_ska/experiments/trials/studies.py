"""What experiments share: the files of one, how many seeds it runs, a table on the screen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

BLUE, VERMILION, GREEN, ORANGE, GREY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#595959"
"""Okabe and Ito's colours, and a grey."""


def study_files(name: str, quick: bool = False) -> tuple[Path, Path]:
    """The records and the picture of an experiment; a quick form has its own."""
    stem = Path("results") / (f"{name}-quick" if quick else name)
    return stem.with_suffix(".jsonl"), stem.with_suffix(".png")


def seed_count(seeds: int | None, own: int) -> int:
    """How many seeds to run: `seeds`, or the experiment's `own` number for None.

    Raises:
        ValueError: `seeds` is below 1.
    """
    count = own if seeds is None else seeds
    if count < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}.")
    return count


def print_rows(console: Console, title: str, rows: Sequence[Sequence[str]]) -> None:
    """A header and rows of text, none too, as `tables.markdown` takes them, as a table on the screen."""
    table = Table(title=title)
    first = rows[1] if len(rows) > 1 else [""] * len(rows[0])
    for place, (name, below) in enumerate(zip(rows[0], first, strict=True)):
        is_number = place > 0 and below[:1] in tuple("0123456789+−-")
        table.add_column(name, justify="right" if is_number else "left")
    for row in rows[1:]:
        table.add_row(*row)
    console.print(table)
