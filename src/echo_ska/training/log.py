"""The training's log: JSON lines that a resumed run continues as if it had never stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol


class Observer(Protocol):
    """Told of every line of a training's log as it is written."""

    def log(self, entry: dict[str, Any]) -> None:
        """`entry` is JSON: `step` (those done), then `loss`, `tokens_per_second`, ... or `evaluation`."""
        ...


class TrainingLog:
    """`directory/log.jsonl`: one object a line, each with the number of `step`s done when it was written.

    Args:
        path: the file; its folder is made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def append(self, entry: dict[str, Any]) -> None:
        """Add a line.

        Raises:
            OSError: one sentence, if it cannot be written; a line cut short is dropped when the run is resumed.
        """
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise OSError(f"The log {self.path} could not be written: {error}.") from error

    def truncate(self, step: int) -> None:
        """Drop every line after `step`: those steps are done again. A line that a kill cut short goes too.

        Raises:
            ValueError: the file is no training's log; it is left as it is.
        """
        if not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        # Only the last line of a log can have been cut short; anything else was written by somebody else.
        if any(_step_of(line) == float("inf") for line in lines[:-1]) or (lines and not lines[0].startswith("{")):
            raise ValueError(f"{self.path} was not written by a training: move it away, or train in another folder.")
        kept = [line for line in lines if _step_of(line) <= step]
        shortened = self.path.with_suffix(".partial")
        shortened.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        shortened.replace(self.path)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
