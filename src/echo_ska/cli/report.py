"""The command line, `echo-ska report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from echo_ska.cli.options import console


def report(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE.html", help="The page; replaced if it is there.")
    ] = Path("report.html"),
    results: Annotated[Path, typer.Option("--results", metavar="FOLDER", help="The folder of the records.")] = Path(
        "results"
    ),
) -> None:
    """Write one page of HTML: each claim, and the verdict that the records in results/ give on it.

    Reproduced, partly, not reproduced, measured in part, or not measured yet: computed by thresholds that stand on the
    page, beside the published figures, ours, tables, pictures, seeds, hardware and cost. The page needs no network.

    **Examples:** `echo-ska report` · `echo-ska report --results results -o report.html`
    """
    from echo_ska.commands.files import require_writable

    require_writable(output, "--output", suffix=".html")
    from echo_ska.commands.report import report as start

    start(results, output, console())
