"""The command line, `echo-ska recall-text`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from echo_ska.cli.options import JsonFile, ModelFolder, console


def recall_text(
    model: ModelFolder,
    task: Annotated[str, typer.Option("--task", metavar="NAME", help="babilong or needle.")] = "babilong",
    variants: Annotated[
        str,
        typer.Option(
            "--variants", metavar="NAME,...", help="qa1 ... qa10, or single, multi-key, multi-value; none takes all."
        ),
    ] = "",
    lengths: Annotated[
        str, typer.Option("--lengths", metavar="N,...", help="Tokens of a text with its question; 0: no background.")
    ] = "0,1024,4096",
    data: Annotated[
        Path | None, typer.Option("--data", metavar="FOLDER", help="bAbI's files; a small sample is in the package.")
    ] = None,
    haystack: Annotated[
        Path | None, typer.Option("--haystack", metavar="PATH", help="Background prose; else the unseen shipped novel.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Questions a variant and length, or all if fewer fit.")] = 20,
    seed: Annotated[int, typer.Option(help="Decides the questions.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: the GPU if there is one.")] = "auto",
    json_file: JsonFile = None,
) -> None:
    """Ask about facts hidden in novels, at any length: BABILong's questions or RULER's needles.

    A text is read once, in constant memory; every answer that may be right is then scored from a copy of the state, and
    the likeliest counts. Chance is printed beside the accuracy; docs/tasks-text.md says what is asked.

    **Examples:** `echo-ska recall-text MODEL --task needle --lengths 1024,4096,16384` ·
    `echo-ska recall-text MODEL --variants qa1,qa2 --data babi/ --haystack novels/ --samples 100 --json scores.json`
    """
    from echo_ska.commands.files import (
        TEXTS,
        require_apart,
        require_apart_from_model,
        require_apart_from_texts,
        require_writable,
    )

    require_writable(json_file, "--json")
    require_apart_from_model(model, json_file)
    require_apart_from_texts([] if haystack is None else [haystack], json_file, "--haystack")
    require_apart(data, json_file, "--data", files=TEXTS)
    from echo_ska.commands.recall_text import RecallTextRequest
    from echo_ska.commands.recall_text import recall_text as start

    request = RecallTextRequest(model, task, variants, lengths, data, haystack, samples, seed, device)
    start(request, json_file, console(json_file))
