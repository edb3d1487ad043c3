"""Where commands print."""

from __future__ import annotations

import os

from rich.console import Console

UNCUT = 10_000
"""Characters of a line that no reader's window bounds, more than any table of ours takes."""


def screen(stderr: bool = False, soft_wrap: bool = False) -> Console:
    """Standard output, or standard error.

    In a terminal it is as wide as that. Piped or written to a file it has no width of its own, for which rich takes 80
    and cuts tables: there nothing is cut, unless COLUMNS says how wide the reader's window is.
    """
    console = Console(stderr=stderr, soft_wrap=soft_wrap)
    if not console.file.isatty() and not os.environ.get("COLUMNS", "").isdigit():
        console.width = UNCUT
    return console
