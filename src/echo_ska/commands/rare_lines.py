"""Lines on the screen; and progress in lines, for what may take long and has no bar."""

from __future__ import annotations

import time

from rich.console import Console
from rich.text import Text

LINE_SECONDS = 10.0


def say(console: Console, line: str) -> None:
    """Print a line that may hold anything, paths and brackets included."""
    console.print(Text(line), soft_wrap=True)


class RareLines:
    """Says one of the lines that it is given every `LINE_SECONDS`."""

    def __init__(self, console: Console) -> None:
        self.console, self.last = console, time.monotonic()

    def say(self, line: str) -> None:
        """Print the line if it is time for one."""
        if (now := time.monotonic()) - self.last >= LINE_SECONDS:
            self.last = now
            say(self.console, line)
