"""The command line, `echo-ska recipe`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from echo_ska.cli.options import JsonFile, console

recipe_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Trainings by name, with their cost and their commands: **echo-ska recipe list**, **show**.",
)


@recipe_app.command("list")
def recipe_list(json_file: JsonFile = None) -> None:
    """List the recipes: model, schedule, tokens and counted operations.

    **Example:** `echo-ska recipe list`
    """
    from echo_ska.commands.files import require_writable

    require_writable(json_file, "--json")
    from echo_ska.commands.recipe import list_recipes

    list_recipes(json_file, console(json_file))


@recipe_app.command("show")
def recipe_show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name from `echo-ska recipe list`.")],
    utilisation: Annotated[
        float, typer.Option(help="The share of a GPU's peak that goes into the model (MFU): an assumption.")
    ] = 0.3,
    tokenizer: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Corpus: the tokenizer that the printed commands name, of its vocabulary."),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Show a recipe: what is the paper's in it, what it costs, and the commands that carry it out.

    Operations are counted from the model; hours follow from them, a GPU's data sheet and --utilisation, which is an
    assumption until somebody has measured it: the training's progress shows the true one as MFU.

    **Examples:** `echo-ska recipe show echo-180m` · `echo-ska recipe show echo-50m --utilisation 0.4 --json cost.json`
    """
    from echo_ska.commands.files import require_apart, require_writable

    require_writable(json_file, "--json")
    require_apart(None if tokenizer is None else Path(tokenizer), json_file, "--tokenizer")
    from echo_ska.commands.recipe import show_recipe

    show_recipe(name, utilisation, tokenizer, json_file, console(json_file))
