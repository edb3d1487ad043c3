"""What several commands of `echo-ska` take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

JsonFile = Annotated[
    Path | None,
    typer.Option(
        "--json",
        metavar="FILE",
        help="Write the printed figures to FILE as JSON; - is standard output, and all else then goes to standard "
        "error.",
    ),
]

ModelFolder = Annotated[
    Path, typer.Argument(metavar="MODEL", help="A folder of `save_pretrained`, or DIR/model of `echo-ska train`.")
]


def console(json_file: Path | None = None) -> Console:
    """Standard output, see `screen`; standard error where the figures go to standard output."""
    from echo_ska.commands.screen import screen
    from echo_ska.training.records import is_printed

    return screen(stderr=is_printed(json_file))
