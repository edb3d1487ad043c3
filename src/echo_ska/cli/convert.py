"""The command line, `echo-ska convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from echo_ska.cli.options import JsonFile, console


def convert(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="A folder of `save_pretrained`: Llama, Mistral, Qwen2, Qwen3, GPT-2."),
    ],
    text: Annotated[list[str], typer.Option("--text", metavar="PATH", help="Text to distil on; may be repeated.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where all is kept.")],
    layers: Annotated[
        str, typer.Option("--layers", help='Which become SKA: all, "every 2nd", or indices as in 1,3.')
    ] = "all",
    init: Annotated[str, typer.Option("--init", help="carry: start from the attention's projections; or fresh.")] = (
        "carry"
    ),
    rank: Annotated[int | None, typer.Option(help="Width of SKA's keys; the heads' own else.")] = None,
    length: Annotated[int, typer.Option(min=8, help="Tokens of a window.")] = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows in a step.")] = 16,
    matching_steps: Annotated[int, typer.Option(min=1, help="Steps of the first stage.")] = 300,
    finetuning_steps: Annotated[int, typer.Option(min=1, help="Steps of the second stage.")] = 300,
    matching_rate: Annotated[float, typer.Option(help="Learning rate of the first stage.")] = 1e-2,
    finetuning_rate: Annotated[float, typer.Option(help="Learning rate of the second, and of the control.")] = 1e-3,
    kl_weight: Annotated[float, typer.Option(min=0, help="Of the original's predictions in the second stage.")] = 0.0,
    copy_every: Annotated[
        int, typer.Option(min=0, help="Every so many-th batch is random tokens to copy, 2 or more; 0 leaves them out.")
    ] = 4,
    control: Annotated[
        bool, typer.Option("--control/--no-control", help="Train a copy of the original as long, for comparison.")
    ] = True,
    seed: Annotated[int, typer.Option(min=0, help="Decides batches and what starts afresh.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: the GPU if there is one.")] = "auto",
    json_file: JsonFile = None,
) -> None:
    """Replace a model's softmax attention by SKA, distil it, and report what was lost and gained.

    First every SKA layer learns the output of the attention it replaced, then the whole model the text. Held-out text
    and copying are scored before, in between and after, beside a copy of the original trained as long. The converted
    model goes to DIR/model; `echo_ska.convert.load_converted` loads it. The same command goes on where it was stopped.

    **Example:** `echo-ska convert llama/ --layers "every 2nd" --text books/ -o converted/`
    """
    from echo_ska.commands.files import (
        require_apart,
        require_apart_from_model,
        require_apart_from_texts,
        require_folder,
        require_writable,
    )

    require_writable(json_file, "--json")
    require_folder(output, "--output")
    require_apart(output, json_file)
    require_apart_from_model(model, json_file)
    require_apart_from_texts(text, json_file)
    from echo_ska.commands.convert import ConvertRequest, start_convert

    start_convert(
        ConvertRequest(
            model,
            text,
            output,
            layers,
            init,
            rank,
            length,
            batch_size,
            (matching_steps, finetuning_steps),
            (matching_rate, finetuning_rate),
            kl_weight,
            copy_every,
            control,
            seed,
            device,
        ),
        json_file,
        console(json_file),
    )
