"""The command line, `echo-ska inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from echo_ska.cli.options import JsonFile, ModelFolder, console


def inspect(
    model: ModelFolder,
    text: Annotated[
        str | None, typer.Option("--text", metavar="FILE-OR-TEXT", help="What to read: a text file, or the text.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="Or a sequence of a recall task, a name in docs/tasks.md.")] = None,
    length: Annotated[
        int | None, typer.Option(min=1, help="Tokens to read: of the text all else, of a task its own length.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Task: of the sequence, 0 unless told.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Where to draw; without it nothing is.")
    ] = None,
    task_set: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=VALUE", help="Task: another value for a setting of it; may be repeated."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: the GPU if there is one.")] = "auto",
    json_file: JsonFile = None,
) -> None:
    """Measure and draw what each SKA head of a model holds and does while the model reads.

    Eigenvalues of its Koopman operator and of its Gram matrix, effective rank and condition number against the tokens
    read; learnt ridge, gain and blend; and which tokens it writes. Inputs of any length, in constant memory.
    docs/inspect.md says how to read the figures.

    **Examples:** `echo-ska inspect runs/books/model --text novel.txt --length 20000 -o inspected` ·
    `echo-ska inspect runs/recall/model --task mqar-grid --length 512 -o inspected --json figures.json`
    """
    from echo_ska.commands.files import require_apart, require_apart_from_model, require_folder, require_writable

    require_writable(json_file, "--json")
    require_folder(output, "--output")
    require_apart_from_model(model, json_file)
    require_apart(None if text is None else Path(text), json_file, "--text")
    from echo_ska.commands.inspect import PICTURES, InspectRequest
    from echo_ska.commands.inspect import inspect as start

    require_apart(output, json_file, files=PICTURES)
    request = InspectRequest(model, text, task, length, seed, task_set or [], output, device)
    start(request, json_file, console(json_file))
