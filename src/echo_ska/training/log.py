"""The training's log: JSON lines that a resumed run continues as if it had never stopped."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from echo_ska.sealed import whole_file

BEGINNING = '{"step": '
"""Of every line that a training writes."""


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
        with self._told(), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def has(self, entry: dict[str, Any]) -> bool:
        """Whether a line says the same."""
        return json.dumps(entry) in self._lines()

    def replace_evaluation(self, entry: dict[str, Any]) -> None:
        """Add a line in the place of other evaluations after as many steps.

        Raises:
            OSError: one sentence, if it cannot be written; the log is as it was.
        """
        lines = self._lines()
        kept = [line for line in lines if _step_of(line) != entry["step"] or "evaluation" not in json.loads(line)]
        if kept == lines:
            self.append(entry)
        else:
            self._write([*kept, json.dumps(entry)])

    def truncate(self, step: int) -> None:
        """Drop every line after `step`: those steps are done again. A line that a kill cut short goes too.

        At step 0 there is nothing to go on from. Lines that stand there are of a run that was stopped before its first
        checkpoint, or of one whose checkpoints were deleted: they are kept beside, in log-1.jsonl or with the next free
        number.

        Raises:
            ValueError: the file is no training's log; it is left as it is.
            OSError: one sentence, if it cannot be written; the log is as it was.
        """
        if not self.path.exists():
            return
        lines = self._lines()
        cut_short = lines.pop()  # what follows the last line break: nothing, if that line is whole
        if lines and not cut_short and not _parses(lines[-1]):
            cut_short = lines.pop()
        alone = not lines and not (cut_short.startswith(BEGINNING) or BEGINNING.startswith(cut_short))
        if alone or any(_step_of(line) == math.inf for line in lines):
            raise ValueError(f"{self.path} was not written by a training: move it away, or train in another folder.")
        if lines and step == 0:
            self.path.rename(self._free_name())
        else:
            self._write([line for line in lines if _step_of(line) <= step])

    def _lines(self) -> list[str]:
        """Those that end in a line break, and what follows the last one, mostly nothing."""
        return self.path.read_text(encoding="utf-8", errors="replace").split("\n") if self.path.exists() else [""]

    def _write(self, lines: list[str]) -> None:
        with self._told(), whole_file(self.path) as shortened:
            shortened.write_text("".join(line + "\n" for line in lines if line), encoding="utf-8")

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Errors of the disk, as one sentence."""
        try:
            yield
        except OSError as error:
            raise OSError(
                f"The log {self.path} could not be written ({error.strerror or error}): make room, or see that the "
                "folder can be written to, and give the same command again, which goes on from the last checkpoint."
            ) from error

    def _free_name(self) -> Path:
        names = (self.path.with_name(f"{self.path.stem}-{number}.jsonl") for number in itertools.count(1))
        return next(name for name in names if not name.exists())


def _parses(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
