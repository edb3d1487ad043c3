"""A page to look at: this checkout's own records, and made-up ones for what they lack, told apart by their hardware."""

from __future__ import annotations

import shutil
from pathlib import Path

from made_up import write_comparison

from echo_ska.experiments.recall import length_generalisation

CHECKOUT = Path(__file__).parents[3]


def write_records(folder: Path) -> None:
    """What is recorded, and made-up needles (a wide table and a picture)."""
    shutil.copytree(CHECKOUT / "results", folder, ignore=shutil.ignore_patterns("*.png", "unfinished"))
    path = folder / "length-generalisation.jsonl"
    path.unlink(missing_ok=True)
    write_comparison(
        path,
        length_generalisation.comparison(),
        3,
        lambda arm, question: 0.99 if arm == "ssm+ska" else max(0.02, 1 - int(question) / 4096),
    )
