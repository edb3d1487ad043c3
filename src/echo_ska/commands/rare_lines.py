"""Progress in lines, for what may take long and has no bar."""

from __future__ import annotations

import time

from rich.console import Console

from echo_ska.commands.goals import say

LINE_SECONDS = 10.0


class RareLines:
    """Says one of the lines that it is given every `LINE_SECONDS`."""

    def __init__(self, console: Console) -> None:
        self.console, self.last = console, time.monotonic()

    def say(self, line: str) -> None:
        """Print the line if it is time for one."""
        if (now := time.monotonic()) - self.last >= LINE_SECONDS:
            self.last = now
            say(self.console, line)
