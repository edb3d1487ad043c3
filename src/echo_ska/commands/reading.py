"""Text files as token ids, block by block, with a bar that says how far the reading is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from echo_ska.models.tokenization import encode, text_blocks


class TextReader:
    """Hands a text file's tokens out and shows what was read; use `reading`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, bar: Progress) -> None:
        self._tokenizer, self._bar = tokenizer, bar
        self._task = bar.add_task("reading", total=None, tokens=0)

    def pieces(self, path: Path) -> Iterator[Tensor]:
        """The ids of a UTF-8 file, int64 rows, with memory for one block of it.

        Raises:
            ValueError: it is not UTF-8; names the byte.
            OSError: it cannot be read.
        """
        self._bar.update(self._task, total=path.stat().st_size)
        for block in text_blocks(path):
            yield encode(self._tokenizer, block)
            self._bar.advance(self._task, len(block.encode()))

    def show(self, tokens: int) -> None:
        """Show that so many tokens have been read."""
        self._bar.update(self._task, tokens=tokens)


@contextlib.contextmanager
def reading(tokenizer: PreTrainedTokenizerBase, console: Console, shown: bool = True) -> Iterator[TextReader]:
    """A reader with its bar on `console`, which goes when the reading ends; no bar where no terminal is."""
    with Progress(
        TextColumn("reading"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[tokens]:,} tokens"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (shown and console.is_terminal),
    ) as bar:
        yield TextReader(tokenizer, bar)
