"""The command line, `echo-ska context`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from echo_ska.cli.options import JsonFile, ModelFolder, console

context_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Read a text once, keep the state, go on from it: **echo-ska context read**, **show**, **list**.",
)


@context_app.command("read")
def context_read(
    model: ModelFolder,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="UTF-8 text of any length.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="STATE", help="The folder to make; a new one.")],
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: the GPU if there is one.")] = "auto",
    json_file: JsonFile = None,
) -> None:
    """Read a text file once, in constant memory, and keep the model's state after it.

    The state has one size whatever the length (unless the model has attention layers). It belongs to this model:
    `echo-ska generate MODEL --state STATE` goes on from it, in Python `ContextState.load` does.

    **Example:** `echo-ska context read runs/books/model novel.txt -o novel.state`
    """
    from echo_ska.commands.files import require_absent, require_apart, require_apart_from_model, require_writable

    require_writable(json_file, "--json")
    require_absent(output, "--output")
    require_apart(output, json_file)
    require_apart_from_model(model, json_file)
    require_apart(file, json_file, "FILE")
    from echo_ska.commands.context import read_context

    read_context(model, file, output, device, json_file, console(json_file))


@context_app.command("show")
def context_show(
    state: Annotated[Path, typer.Argument(metavar="STATE", help="A folder that `echo-ska context read` made.")],
    json_file: JsonFile = None,
) -> None:
    """Verify a saved context by its checksums and say what it holds; exit code 1 if it is damaged.

    **Example:** `echo-ska context show novel.state`
    """
    from echo_ska.commands.files import require_apart, require_writable

    require_writable(json_file, "--json")
    require_apart(state, json_file, "STATE")
    from echo_ska.commands.context import show_context

    show_context(state, json_file, console(json_file))


@context_app.command("list")
def context_list(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="The folder of a `ContextStore`, or serve's --store.")],
    json_file: JsonFile = None,
) -> None:
    """List a store's contexts, the most recently used first: tokens, bytes, model, when last used.

    **Example:** `echo-ska context list contexts/`
    """
    from echo_ska.commands.files import require_apart, require_writable

    require_writable(json_file, "--json")
    require_apart(store, json_file, "STORE")
    from echo_ska.commands.context import list_contexts

    list_contexts(store, json_file, console(json_file))
