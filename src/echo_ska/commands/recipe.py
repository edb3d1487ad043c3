"""`echo-ska recipe`: trainings by name, what they cost, and the commands that carry them out."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from echo_ska.benchmarks.cost import PEAKS, Cost, training_cost
from echo_ska.commands.rare_lines import say
from echo_ska.corpus.tokenizer import BYTES, CorpusTokenizer
from echo_ska.evaluation.memory_plot import format_bytes
from echo_ska.training import ScaleConfig
from echo_ska.training.recipes import RECIPES, Recipe, find_recipe
from echo_ska.training.records import write_json

KINDS = {"linear": "linear layers", "head": "head", "mamba2": "Mamba-2's scan", "ska": "SKA's moments, solves, reads"}
"""What the parts of a cost are called."""


def list_recipes(json_file: Path | None, console: Console) -> None:
    """Print every recipe in a row."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("recipe", no_wrap=True)
    for heading in ("parameters", "steps", "sequences", "tokens each", "tokens", "operations"):
        table.add_column(heading, justify="right", no_wrap=True)
    listed = []
    for recipe in RECIPES.values():
        cost = cost_of(recipe)
        listed.append(described(recipe, cost))
        steps = recipe.training.steps
        numbers = [cost.parameters, steps, recipe.batch_size, recipe.length]
        table.add_row(recipe.name, *(f"{n:,}" for n in numbers), f"{recipe.tokens:.3g}", f"{cost.flops:.2e}")
    console.print(table)
    say(console, "\nOperations of all forward and backward products, counted. `echo-ska recipe show NAME` says more.")
    write_json(json_file, {"recipes": listed})


def show_recipe(name: str, utilisation: float, tokenizer: str | None, json_file: Path | None, console: Console) -> None:
    """Print one recipe with its cost and its commands, which name `tokenizer` or a place for it.

    Raises:
        ValueError: no recipe has that name, the utilisation is not in (0, 1], or `tokenizer` is none for the recipe.
    """
    recipe = find_recipe(name)
    if not 0 < utilisation <= 1:
        raise ValueError(f"--utilisation must be above 0 and at most 1, got {utilisation}.")
    if tokenizer is not None:
        _require_tokenizer(recipe, tokenizer)
    cost = cost_of(recipe)
    hours = {gpu: cost.hours(peak, utilisation) for gpu, peak in PEAKS.items()}
    training = recipe.training
    console.print(Text(f"{recipe.name}: {recipe.summary}", style="bold"), soft_wrap=True)
    layers = recipe.model_config().layer_types
    kinds = ", ".join(f"{layers.count(kind)} {kind}" for kind in dict.fromkeys(layers))
    say(console, f"\nModel      {recipe.model}, {cost.parameters:,} parameters, layers: {kinds}.")
    say(
        console,
        f"Schedule   {training.steps:,} steps of {recipe.batch_size} sequences of {recipe.length:,} tokens: "
        f"{recipe.tokens:,} tokens. Learning rate {training.learning_rate:g} after {training.warmup_steps:,} steps, "
        f"then a cosine down to {training.final_learning_rate_fraction:.0%}; weight decay {training.weight_decay:g}, "
        f"betas {training.betas[0]:g} and {training.betas[1]:g}, gradients clipped at {training.gradient_clip:g}; "
        f"precision {training.precision}.",
    )
    spread = "one process" if recipe.processes == 1 else f"{recipe.processes} processes, {recipe.strategy}"
    kept = "each block's input kept alone" if recipe.checkpoint_activations else "activations kept"
    say(console, f"Spread     {spread}; {recipe.accumulate} piece(s) a step and process; {kept}.")
    if recipe.spike_factor is not None:
        window = ScaleConfig().spike_window
        say(console, f"Guard      stops at a loss above {recipe.spike_factor:g} times the mean of the {window} before.")
    if recipe.from_the_paper:
        say(console, f"The paper's: {recipe.from_the_paper}")
    say(console, f"Ours: {recipe.ours}")

    console.print(_cost_table(cost))
    say(
        console,
        f"All in all {cost.flops:.3e} operations. Weights, gradients and AdamW's moments in float32: "
        f"{format_bytes(cost.state_bytes)}, shared out where the strategy shares them; activations come on top.",
    )
    if recipe.corpus:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("GPU")
        for heading in ("peak, operations/s", "hours on one", f"on {recipe.processes}"):
            table.add_column(heading, justify="right")
        for gpu, peak in PEAKS.items():
            shared = cost.hours(peak, utilisation, recipe.processes)
            table.add_row(gpu, f"{peak:.3g}", f"{hours[gpu]:,.1f}", f"{shared:,.1f}")
        console.print(table)
        say(
            console,
            f"At an MFU of {utilisation:.0%}, an assumption, and without loss between GPUs: nobody has run it.",
        )
    console.print(Text("\nCommands", style="bold"))
    for command in recipe.commands() if tokenizer is None else recipe.commands(tokenizer):
        say(console, f"  {shlex.join(command)}")
    if recipe.corpus and tokenizer is None:
        say(console, f"TOKENIZER is the folder of a Hugging Face tokenizer of {recipe.vocab_size:,} tokens.")
    write_json(json_file, described(recipe, cost) | {"utilisation_assumed": utilisation, "hours_on_one": hours})


def recipe_options(name: str, given: set[str]) -> dict[str, Any]:
    """What `echo-ska train --recipe` takes from a recipe, by the names of its options in Python.

    Args:
        name: of the recipe.
        given: the options that somebody has given, which go before the recipe's.

    Raises:
        ValueError: no recipe has that name, a task is to be learnt, or what it learns has to be given.
    """
    recipe = find_recipe(name)
    if "task" in given:
        raise ValueError(
            f"--recipe is for --text and --data: a task has token ids of its own, with which {name} would train "
            f"another model; leave --recipe out, and give --model {recipe.model} and what else of it you want for the "
            f"task (`echo-ska recipe show {name}` prints its options)."
        )
    options = recipe.train_options() | recipe.scale_options()
    if not given & {"text", "more_text", "data"}:
        if recipe.corpus:
            prepare = shlex.join(recipe.commands()[0])
            raise ValueError(
                f"The recipe {name} learns a corpus: give --data DIR, which `{prepare}` prepares (TOKENIZER: the "
                f"folder of a tokenizer of {recipe.vocab_size:,} tokens)."
            )
        if absent := [path for path in recipe.text if not Path(path).exists()]:
            raise ValueError(
                f"The recipe {name} learns texts of your own, and there is no {' and no '.join(absent)} here: give "
                "--text PATH and --held-out PATH."
            )
        options |= {"text": list(recipe.text), "held_out": list(recipe.held_out) or None}
    return {option: value for option, value in options.items() if option not in given}


def require_vocabulary(name: str, vocab_size: int, what: str) -> None:
    """Refuse to learn in a recipe's name what has another vocabulary than the corpus that it is meant for.

    A recipe for text states none for a corpus, and refuses nothing.

    Args:
        name: of the recipe.
        vocab_size: token ids of what is to be learnt.
        what: has them, for the message.

    Raises:
        ValueError: they are not as many as the recipe says.
    """
    recipe = find_recipe(name)
    if recipe.corpus and vocab_size != recipe.vocab_size:
        raise ValueError(
            f"The recipe {name} is of {recipe.vocab_size:,} token ids and {what} has {vocab_size:,}, which would be "
            f"another model: prepare a corpus with a tokenizer of {recipe.vocab_size:,} tokens (`echo-ska tokenizer "
            f"train TEXT --vocab-size {recipe.vocab_size} -o FOLDER` makes one), or leave --recipe out and give the "
            f"options that `echo-ska recipe show {name}` prints."
        )


def _require_tokenizer(recipe: Recipe, name: str) -> None:
    """Raise ValueError unless a corpus of the recipe can be prepared with the tokenizer of that name."""
    if not recipe.corpus:
        raise ValueError(f"--tokenizer is for recipes of a corpus: {recipe.name} learns bytes, leave it out.")
    remedy = (
        f"name the folder of one of {recipe.vocab_size:,} tokens (`echo-ska tokenizer train TEXT --vocab-size "
        f"{recipe.vocab_size} -o FOLDER` makes it)."
    )
    if name != BYTES and not Path(name).is_dir():
        raise ValueError(f"--tokenizer {name} is no folder: {remedy}")
    if (found := CorpusTokenizer(name).vocab_size) != recipe.vocab_size:
        raise ValueError(
            f"--tokenizer {name} has {found:,} token ids and the recipe {recipe.name} is of {recipe.vocab_size:,}: "
            f"{remedy}"
        )


def cost_of(recipe: Recipe) -> Cost:
    """Its cost, counted."""
    return training_cost(recipe.model_config(), recipe.length, recipe.tokens)


def described(recipe: Recipe, cost: Cost) -> dict[str, Any]:
    """For JSON."""
    return {
        **dataclasses.asdict(recipe),
        "tokens": recipe.tokens,
        "parameters": cost.parameters,
        "forward_flops_per_token": cost.forward,
        "backward_flops_per_token": cost.backward,
        "flops": cost.flops,
        "state_bytes": cost.state_bytes,
        "commands": recipe.commands(),
    }


def _cost_table(cost: Cost) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("operations a token, millions")
    for heading in ("forward", "backward"):
        table.add_column(heading, justify="right")
    for part in cost.forward:
        table.add_row(KINDS.get(part, part), f"{cost.forward[part] / 1e6:,.2f}", f"{cost.backward[part] / 1e6:,.2f}")
    whole = (sum(part.values()) for part in (cost.forward, cost.backward))
    table.add_row("all", *(f"{number / 1e6:,.2f}" for number in whole))
    return table
