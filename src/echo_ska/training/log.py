"""The training's log: JSON lines that a resumed run continues as if it had never stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class TrainingLog:
    """`directory/log.jsonl`: one object a line, each with the number of `step`s done when it was written.

    Args:
        path: the file; its folder is made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def append(self, entry: dict[str, Any]) -> None:
        """Add a line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def truncate(self, step: int) -> None:
        """Drop every line after `step`: those steps are done again. A line that a kill cut short goes too."""
        if not self.path.exists():
            return
        kept = [line for line in self.path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
        shortened = self.path.with_suffix(".partial")
        shortened.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        shortened.replace(self.path)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
