"""The command line, `echo-ska train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from echo_ska.cli.options import JsonFile, console


def train(
    ctx: typer.Context,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", metavar="PATH", help="A text file or folder (*.txt, *.md) to learn; may be repeated."),
    ] = None,
    task: Annotated[str | None, typer.Option(help="A recall task to learn; docs/tasks.md lists them.")] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="A corpus to learn, of `echo-ska data prepare`.")
    ] = None,
    no_verify: Annotated[
        bool,
        typer.Option("--no-verify", help="Corpus: train without holding all shards to their checksums first."),
    ] = False,
    more_text: Annotated[
        list[str] | None, typer.Argument(metavar="[PATH]...", help="More paths of text, after --text.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Text, corpus: settings of `echo-ska recipe list`; options given here override it."
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(metavar="PRESET", help="What to train, a name from `echo-ska models`.")
    ] = "echo-1m",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Another value for a field of the model; may be repeated."),
    ] = None,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 500,
    batch_size: Annotated[int, typer.Option(help="Sequences in a step.")] = 32,
    length: Annotated[
        int | None, typer.Option(help="Tokens in a sequence. Default: 256 of text, or the task's own.")
    ] = None,
    learning_rate: Annotated[float, typer.Option(help="The peak, after a warm-up over a tenth of the steps.")] = 3e-3,
    seed: Annotated[int, typer.Option(help="Of the model's start, the data and the samples.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Where to keep checkpoints, log, model and record."),
    ] = None,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 100,
    precision: Annotated[str, typer.Option(help="fp32, bf16, or auto: bf16 on a GPU that has it.")] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: the GPU if there is one.")] = "auto",
    strategy: Annotated[
        str,
        typer.Option(
            help="What several processes (torchrun) share: ddp, the batch; fsdp, the weights too; deepspeed (ZeRO-1), "
            "the optimiser's moments; context, every sequence. auto: ddp."
        ),
    ] = "auto",
    accumulate: Annotated[
        int, typer.Option(help="Take a process's part of a batch in so many pieces, one after the other.")
    ] = 1,
    checkpoint_activations: Annotated[
        bool, typer.Option("--checkpoint-activations", help="Compute blocks anew for the backward pass: less memory.")
    ] = False,
    compile: Annotated[bool, typer.Option("--compile", help="Compile the model by torch.compile.")] = False,
    spike_factor: Annotated[
        float | None,
        typer.Option(help="Stop at a loss above so many times the mean of the 100 before; NaN always stops."),
    ] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write curves to DIR/tensorboard.")] = False,
    wandb: Annotated[
        str | None, typer.Option(metavar="PROJECT", help="Log to this project of Weights & Biases.")
    ] = None,
    held_out: Annotated[
        list[str] | None,
        typer.Option("--held-out", metavar="PATH", help="Text: hold these out, instead of about a tenth of the files."),
    ] = None,
    score_bytes: Annotated[
        int | None,
        typer.Option(
            help="Read at most so many bytes to score: of each held-out file (text: 65,536 unless told), of all "
            "held-out documents together (corpus: 524,288)."
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=0, help="Text, corpus: samples to print at the end.")] = 2,
    sample_bytes: Annotated[int, typer.Option(min=0, help="Text, corpus: bytes (corpus: tokens) in a sample.")] = 200,
    temperature: Annotated[float, typer.Option(help="Text, corpus: of the samples; 0 takes the likeliest.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Text, corpus: sample from the so many likeliest.")] = None,
    pairs: Annotated[int | None, typer.Option(help="Task, where it has pairs: how many in a sequence.")] = None,
    gap: Annotated[int | None, typer.Option(help="Task mqar-grid: fillers between pairs and queries.")] = None,
    vocab_size: Annotated[int | None, typer.Option(help="Task: token ids.")] = None,
    num_keys: Annotated[int | None, typer.Option(help="Task, where it has them: keys to draw from.")] = None,
    num_values: Annotated[int | None, typer.Option(help="Task, where it has them: values to draw from.")] = None,
    task_set: Annotated[
        list[str] | None,
        typer.Option("--task-set", metavar="FIELD=VALUE", help="Any setting of the task; may be repeated."),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Train a model on your own text (byte by byte), on a corpus of `echo-ska data prepare` or on a recall task.

    Text is split by file into training and held-out; bits per byte on the held-out part are reported before and
    after, and samples are printed. Of a corpus every byte is held to its checksum first, and each document is
    read from an empty state. A recall task reports its accuracy at 1, 2, 4 and 8 times the training length.

    With --output DIR a run that was stopped, at any moment, goes on when the same command is given again; a DIR that
    holds another run is refused. DIR/model is then a model that `echo-ska generate`, `eval` and `export` take, with the
    byte tokenizer beside it where it learnt text; after `import echo_ska.models`,
    `AutoModelForCausalLM.from_pretrained` loads it.

    **Examples**

    `echo-ska train --text books/ --output runs/books`

    `echo-ska train --data corpora/web --model echo-50m --length 1024 --output runs/web`

    `echo-ska train --recipe echo-novel --output runs/novel --tensorboard`

    `echo-ska train --text novel.txt diary.md --model echo-1m-ssm --steps 1000 --seed 1`

    `echo-ska train --task mqar-grid --pairs 8 --gap 32 --set rank=16 --batch-size 64`

    `echo-ska train --task multi-hop --task-set hops=3 --task-set written=true --length 128`

    `torchrun --nproc-per-node 8 -m echo_ska train --text books/ --strategy fsdp --output runs/books` (docs/training.md)
    """
    from echo_ska.commands.files import require_apart, require_apart_from_texts, require_folder, require_writable

    require_writable(json_file, "--json")
    require_folder(output, "--output")
    require_apart(output, json_file)
    require_apart(data, json_file, "--data")
    from echo_ska.commands.goals import TrainRequest
    from echo_ska.commands.train import train_command
    from echo_ska.training import ScaleConfig

    asked: dict[str, Any] = {
        "text": (text or []) + (more_text or []),
        "data": data,
        "verify": not no_verify,
        "task": task,
        "recipe": recipe,
        "model": model,
        "settings": settings or [],
        "steps": steps,
        "batch_size": batch_size,
        "length": length,
        "learning_rate": learning_rate,
        "seed": seed,
        "output": output,
        "checkpoint_every": checkpoint_every,
        "precision": precision,
        "device": device,
        "tensorboard": tensorboard,
        "wandb": wandb,
        "held_out": held_out,
        "score_bytes": score_bytes,
        "samples": samples,
        "sample_bytes": sample_bytes,
        "temperature": temperature,
        "top_k": top_k,
        "task_set": task_set or [],
    }
    scale: dict[str, Any] = {
        "strategy": strategy,
        "accumulate": accumulate,
        "checkpoint_activations": checkpoint_activations,
        "compile": compile,
        "spike_factor": spike_factor,
    }
    given = _given(ctx)
    if recipe is not None:
        from echo_ska.commands.recipe import recipe_options

        for name, value in recipe_options(recipe, given).items():
            (scale if name in scale else asked)[name] = value
    require_apart_from_texts(asked["text"], json_file)  # those of a recipe too
    task_settings = {
        "pairs": pairs,
        "gap": gap,
        "vocab_size": vocab_size,
        "num_keys": num_keys,
        "num_values": num_values,
    }
    request = TrainRequest(**asked, task_settings=task_settings, scale=ScaleConfig(**scale), given=frozenset(given))
    train_command(request, json_file, console(json_file))


def _given(ctx: typer.Context) -> set[str]:
    """The names of the parameters that are not left at their defaults."""
    sources = {name: ctx.get_parameter_source(name) for name in ctx.params}
    return {name for name, source in sources.items() if source is not None and "DEFAULT" not in source.name}
