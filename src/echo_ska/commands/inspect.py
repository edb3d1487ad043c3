"""`echo-ska inspect`: what the SKA heads of a model hold and do, in tables, colours and pictures."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.style import Style
from rich.table import Table
from rich.text import Text
from torch import Tensor

from echo_ska.commands.goals import make_task
from echo_ska.commands.load import load_model, load_tokenizer, require_model_folder
from echo_ska.commands.rare_lines import say
from echo_ska.commands.screen import screen
from echo_ska.evaluation.inspection import Inspection, LayerInspection, inspect_model
from echo_ska.evaluation.inspection_plot import draw_eigenvalues, draw_positions, draw_spectra
from echo_ska.evaluation.inspection_summary import (
    LISTED,
    head_summary,
    layer_summary,
    strongest_places,
    weight_by_role,
    written_tokens,
)
from echo_ska.evaluation.inspection_writing_plot import ShownToken, draw_heads, draw_tokens, token_lines
from echo_ska.evaluation.sampling import printable
from echo_ska.models import EchoForCausalLM
from echo_ska.models.tokenization import encode, text_blocks
from echo_ska.training.records import write_json

SHOWN = 640
"""Characters that are shown on their colours, about; of longer inputs, two thirds of them from the start."""

PICTURES = ("eigenvalues.png", "gram.png", "positions.png", "heads.png", "tokens.png")
"""What is drawn, where there is something to draw."""

TEXT_SUFFIXES = (".txt", ".md", ".text", ".rst", ".csv", ".json", ".html", ".py")
HEAT = ((0.05, "#fff0b3"), (0.25, "#ffcf66"), (0.5, "#f79d4c"), (0.75, "#ef5f3c"), (0.95, "#c1121f"))
"""Write weights on the screen: from each on, its colour. Hues, because a screen may be dark or light."""


@dataclass(frozen=True)
class InspectRequest:
    """What was asked for; the options of `echo-ska inspect`, which documents them."""

    model: Path
    text: str | None
    task: str | None
    length: int | None
    seed: int | None
    task_set: list[str]
    output: Path | None
    device: str


@dataclass(frozen=True)
class Input:
    """What is read: ids [T], what to write for a token, a role for each token of a task, and where it came from."""

    ids: Tensor
    label: Callable[[int], str]
    roles: list[str] | None
    source: dict[str, Any]

    def shown(self) -> list[ShownToken]:
        """The tokens to show, of about `SHOWN` characters."""
        count = len(self.ids)
        width = 1 if self.roles is None else max(4, 1 + len(str(int(self.ids.max()))))
        most, places = SHOWN // width, list(range(count))
        if count > most:
            places = [*range(most * 2 // 3), *range(count - most // 3, count)]
        if self.roles is not None:
            return [ShownToken(place, f"{int(self.ids[place]):>{width}}", self.roles[place]) for place in places]
        return [ShownToken(place, self.label(int(self.ids[place]))) for place in places]


def inspect(request: InspectRequest, json_file: Path | None, console: Console) -> None:
    """Read, measure, print, draw and write.

    Raises:
        ValueError: the model has no SKA layer, or a folder, text or setting is not as it must be.
        OSError: a file cannot be read or written.
        ArithmeticError: a Gram matrix plus the ridge is not positive definite.
    """
    if (request.text is None) == (request.task is None):
        raise ValueError("Give either --text (a file or the text itself) or --task NAME (docs/tasks.md).")
    if request.text is not None and (request.task_set or request.seed is not None):
        raise ValueError(f"{'--task-set' if request.task_set else '--seed'} is for --task: text has no such setting.")
    require_model_folder(request.model)
    given = None if request.task is None else _of_task(request)
    text = None if request.text is None else _text(request.text)
    model = load_model(request.model, request.device)
    if given is None:
        assert text is not None
        given = _of_text(request, text, model)
    elif int(given.source["vocab_size"]) > model.config.vocab_size:
        raise ValueError(
            f"The task has {given.source['vocab_size']} token ids, the model {model.config.vocab_size}: give the "
            "settings that it was trained with (--task-set vocab_size=..., num_keys=..., num_values=...)."
        )
    began = time.perf_counter()
    found = _inspect(model, given.ids)
    seconds = time.perf_counter() - began

    say(console, f"{len(given.ids):,} tokens, {len(found.layers)} SKA layers of {request.model}, {seconds:.1f} s.")
    console.print(_table(found))
    for layer in found.layers:
        if layer.power == 0:
            say(console, f"Layer {layer.layer} has power 0: plain ridge regression, there is no operator.")
    for warning in found.warnings():
        console.print(Text(f"Near the limit: {warning}.", style="yellow"), soft_wrap=True)
    shown = given.shown()
    _print_writing(found, given, shown, console)
    pictures = _draw(found, shown, request.output)
    if request.output is not None:
        say(console, f"Drawn to {request.output}: {', '.join(pictures)}.")
    layers = [layer_summary(layer) | {"written": _written(layer, given)} for layer in found.layers]
    write_json(
        json_file,
        {
            "model": str(request.model),
            "input": given.source | {"tokens": len(given.ids)},
            "seconds": seconds,
            "warnings": found.warnings(),
            "layers": layers,
            "pictures": [str(request.output / name) for name in pictures] if request.output else [],
        },
    )


def _of_task(request: InspectRequest) -> Input:
    assert request.task is not None
    task = make_task(request.task, request.length, {}, request.task_set)
    seed = 0 if request.seed is None else request.seed
    batch = task.sample(1, torch.Generator().manual_seed(seed))
    source = {"task": request.task, "settings": str(task), "vocab_size": task.vocab_size, "seed": seed}
    return Input(batch.input_ids[0], str, task.roles(batch)[0], source)


def _text(given: str) -> tuple[str, bool]:
    """The text, and whether it came from a file; a path to nothing is refused rather than read as a text."""
    if not given:
        raise ValueError("The text is empty: there is nothing to read.")
    path = Path(given)
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        is_file = is_folder = False  # a text, longer than names can be
    if is_file:
        return "".join(text_blocks(path)), True
    if is_folder:
        raise ValueError(f"--text {given} is a folder: name a file in it.")
    if not any(character.isspace() for character in given):
        looks_like_a_path = path.suffix.lower() in TEXT_SUFFIXES or "/" in given or "\\" in given
        if looks_like_a_path:
            raise ValueError(f"There is no file {given}: give a text file, or a text, by --text.")
    return given, False


def _of_text(request: InspectRequest, text: tuple[str, bool], model: EchoForCausalLM) -> Input:
    tokenizer = load_tokenizer(request.model, model.config.vocab_size)
    ids = encode(tokenizer, text[0])
    if len(ids) == 0:
        raise ValueError("The text is empty: there is nothing to read.")
    if request.length is not None:
        if request.length > len(ids):
            raise ValueError(f"The text has {len(ids):,} tokens, fewer than --length {request.length}: leave it out.")
        ids = ids[: request.length]

    def label(token: int) -> str:
        piece = str(tokenizer.decode([token]))
        if piece == "\r":
            return " "
        # A line end stays one; other control characters, and pieces of a character, are replaced.
        return printable(piece) or " "

    return Input(ids, label, None, {"text": request.text if text[1] else None})


def _inspect(model: EchoForCausalLM, ids: Tensor) -> Inspection:
    with Progress(
        TextColumn("reading"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=(console := screen(stderr=True)),
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        reading = bar.add_task("reading", total=len(ids))
        return inspect_model(model, ids, progress=lambda read: bar.update(reading, completed=read))


def _table(found: Inspection) -> Table:
    """One row a head."""
    gated, blended = (
        any(getattr(layer, name) is not None for layer in found.layers) for name in ("write_weight", "blend")
    )
    powered, scaled = (any(getattr(layer, name) is not None for layer in found.layers) for name in ("gain", "scale"))
    columns: list[tuple[str, bool, Callable[[dict[str, Any]], str]]] = [
        ("ridge", True, lambda head: f"{head['ridge']:.3g}"),
        ("gain", powered, lambda head: "" if head["gain"] is None else f"{head['gain']:.3g}"),
        ("scale", scaled, lambda head: "" if head["scale"] is None else f"{head['scale']:.3g}"),
        ("λ min", True, lambda head: f"{head['lambda_min']:.1e}"),
        ("λ max", True, lambda head: f"{head['lambda_max']:.3g}"),
        ("rank", True, lambda head: f"{head['effective_rank']:.1f}"),
        ("cond", True, lambda head: f"{head['condition']:.3g}"),
        ("|μ|", powered, lambda head: "" if head["operator"] is None else f"{head['operator']['radius']:.3f}"),
        ("write", gated, lambda head: _number(head["write_weight"], "mean", "{:.2f}")),
        ("= 0", gated, lambda head: _number(head["write_weight"], "share_of_exactly_0", "{:.0%}")),
        ("= 1", gated, lambda head: _number(head["write_weight"], "share_of_exactly_1", "{:.0%}")),
        ("blend", blended, lambda head: _number(head["blend"], "mean", "{:.2f}")),
    ]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("head", no_wrap=True)
    used = [column for column in columns if column[1]]
    for heading, _, _ in used:
        table.add_column(heading, justify="right", no_wrap=True)
    for layer in found.layers:
        for head in range(layer.num_heads):
            summary = head_summary(layer, head)
            last = head == layer.num_heads - 1
            table.add_row(
                f"{layer.layer}.{head}", *(show(summary) for _, _, show in used), end_section=last and len(used) > 0
            )
    table.caption = Text(
        f"head: layer.head. λ: of the Gram matrix. rank: effective, of {found.layers[0].rank}. cond: of G + ridge I. "
        "|μ|: largest eigenvalue of A, without the gain. write, blend: means over the tokens. = 0, = 1: exactly."
    )
    table.caption_justify = "left"
    return table


def _number(values: dict[str, Any] | None, name: str, form: str) -> str:
    return "" if values is None else form.format(values[name])


def _print_writing(found: Inspection, given: Input, shown: Sequence[ShownToken], console: Console) -> None:
    if all(layer.write_weight is None for layer in found.layers):
        say(console, "No layer has a write gate: every token is stored whole.")
        return
    legend = Text("What is written, by the mean over a layer's heads: 0")
    for least, _ in HEAT:
        legend.append(f" {least:g} ", _heat(least))
    console.print(legend.append(" and more", style="dim"))
    lines = token_lines(shown, max(20, min(88, console.width)))
    for layer in found.layers:
        if layer.write_weight is None:
            continue
        console.print(Text(f"\nLayer {layer.layer}", style="bold"))
        means = layer.write_weight.mean(-1)
        for before, line in zip([None, *lines[:-1]], lines, strict=True):
            if before is not None and line[0].index > before[-1].index + 1:
                console.print(Text(f"... {line[0].index - before[-1].index - 1:,} tokens ...", style="dim"))
            if line[0].role:
                console.print(Text("".join(f"{token.role:>{len(token.text)}}" for token in line), style="dim"))
            row = Text()
            for token in line:
                row.append(token.text.replace("\n", "¶").replace("\t", " "), _heat(float(means[token.index])))
            console.print(row, soft_wrap=True)
        written = _written(layer, given)
        for name in ("most", "least"):
            entries = ", ".join(f"{entry['text']!r} {entry['mean']:.2f}" for entry in written[name])
            say(console, f"written {name}: {entries}")
        if written["by_role"]:
            say(console, "by role: " + ", ".join(f"{role} {mean:.2f}" for role, mean in written["by_role"].items()))


def _heat(weight: float) -> Style:
    colour = next((colour for least, colour in reversed(HEAT) if weight >= least), None)
    if colour is None:
        return Style.null()
    return Style(bgcolor=colour, color="white" if colour in (HEAT[-1][1], HEAT[-2][1]) else "black")


def _written(layer: LayerInspection, given: Input) -> dict[str, Any]:
    tokens = [entry | {"text": given.label(entry["token"])} for entry in written_tokens(layer, given.ids)]
    places = [
        place | {"token": (token := int(given.ids[place["position"]])), "text": given.label(token)}
        for place in strongest_places(layer)
    ]
    return {
        "most": tokens[:LISTED],
        "least": tokens[::-1][:LISTED],
        "strongest": places,
        "by_role": {} if given.roles is None else weight_by_role(layer, given.roles),
    }


def _draw(found: Inspection, shown: Sequence[ShownToken], folder: Path | None) -> list[str]:
    """The names of the pictures that were drawn."""
    if folder is None:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    eigenvalues, gram, positions, heads, tokens = (folder / name for name in PICTURES)
    drawn = [eigenvalues] if draw_eigenvalues(found, eigenvalues) else []
    draw_spectra(found, gram)
    draw_positions(found, positions)
    draw_heads(found, heads)
    drawn += [gram, positions, heads]
    if draw_tokens(found, shown, tokens):
        drawn.append(tokens)
    return [picture.name for picture in drawn]
