"""`echo-ska train`: a preset learns real text, a corpus or a recall task; what came of it is printed and kept."""

from __future__ import annotations

import dataclasses
import json
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers.utils import logging

from echo_ska.benchmarks.cost import device_peak, training_cost
from echo_ska.commands.errors import is_out_of_memory, memory_asked_for
from echo_ska.commands.goal_corpus import LearnCorpus
from echo_ska.commands.goals import Goal, LearnRecall, LearnText, TrainRequest
from echo_ska.commands.keep import whole_model
from echo_ska.commands.other_options import other_options
from echo_ska.commands.rare_lines import say
from echo_ska.commands.recipe import require_vocabulary
from echo_ska.models import EchoConfig, EchoForCausalLM
from echo_ska.models.presets import preset
from echo_ska.training import (
    Observer,
    Observers,
    RunRecord,
    Throughput,
    TrainingConfig,
    console_reporter,
    open_observers,
    train,
)
from echo_ska.training.checkpoint import list_checkpoints
from echo_ska.training.device import training_device, uses_bfloat16
from echo_ska.training.engine import require_named_outputs
from echo_ska.training.processes import before_joining, is_first_process, is_shared, launched_processes, shared
from echo_ska.training.records import append_new, require_records, write_json
from echo_ska.training.resume import OtherSettingsError, describe_model, held_folder


def train_command(request: TrainRequest, json_file: Path | None, console: Console) -> None:
    """Train, print and keep what was asked for; of several processes that a launcher started, the first does.

    Raises:
        ValueError: settings, texts or the output folder do not fit; nothing was overwritten.
        FloatingPointError: the loss or a gradient stopped being finite.
        OSError: a checkpoint or the model could not be written; the checkpoints before it stay.
        MemoryError: there is not enough of it, on the GPU or beside it.
        KeyboardInterrupt: Ctrl-C; the message says how to go on.
    """
    if not is_first_process():
        console = Console(quiet=True)
    with before_joining():
        goal, config, model = _prepared(request)
    model_config = model.config
    goal.introduce(console)
    say(
        console,
        f"{request.model}: {model.num_parameters():,} parameters, layers {', '.join(model_config.layer_types)}.",
    )
    throughput = _throughput(config, model_config, goal)
    try:
        with ExitStack() as opened, console_reporter("training", console, throughput) as reporter:
            observers: list[Observer] = []

            def begin() -> None:
                """In the first process, once the run may go on: a command that is refused touches no curves."""
                goal.check(console)
                if request.output is not None and (found := list_checkpoints(request.output)):
                    say(console, f"Going on from {found[-1]}.")
                if request.output is not None:
                    observers.append(opened.enter_context(_observers(request, config, model, goal, throughput)))

            record = train(
                model,
                goal.data,
                config,
                scale=request.scale,
                check=begin,
                evaluate=goal.evaluate if goal.scored else None,
                directory=request.output,
                reporter=reporter,
                observers=observers,
                name=goal.name,
            )
        if not is_first_process():
            return  # the first prints and writes
        untrained = _untrained(model_config, request.seed).to(next(model.parameters()).device)
        figures = dict(record.figures)
        goal.report(model, untrained, figures, console)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_how_to_resume(request.output)) from None
    except OtherSettingsError as error:
        other = ValueError(other_options(request, error.differing))
        raise (shared(other) if is_shared(error) else other) from error
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        short = MemoryError(
            f"There is not enough memory for this training{memory_asked_for(error)}: take a smaller --batch-size, or "
            "divide the batch by --accumulate, or give --checkpoint-activations."
        )
        raise (shared(short) if is_shared(error) else short) from error
    record = dataclasses.replace(record, figures=figures)
    if request.output is not None:
        _keep(record, model, request.output, goal)
        say(console, f"Kept in {request.output}: model, checkpoints, log.jsonl, records.jsonl.")
    else:
        say(console, "The model was not kept: there was no --output.")
    write_json(json_file, dataclasses.asdict(record))


def _prepared(request: TrainRequest) -> tuple[Goal, TrainingConfig, EchoForCausalLM]:
    """What was asked for, refused where it cannot be had."""
    if request.output is None and (request.tensorboard or request.wandb is not None):
        raise ValueError("--tensorboard and --wandb keep their files in the folder of the run: give --output DIR.")
    if [bool(request.text), request.data is not None, bool(request.task)].count(True) != 1:
        raise ValueError("Give one of --text PATH, --task NAME (as in mqar-grid) and --data DIR: what is to be learnt.")
    if request.data is None and not request.verify:
        raise ValueError("--no-verify is for --data: text and tasks have no checksums.")
    config = TrainingConfig(
        steps=request.steps,
        learning_rate=request.learning_rate,
        seed=request.seed,
        precision=request.precision,
        device=request.device,
        checkpoint_every=request.checkpoint_every,
    )
    goal: Goal
    if request.data is not None:
        goal = LearnCorpus(request)
    else:
        goal = LearnText(request) if request.text else LearnRecall(request)
    if request.recipe is not None:
        what = "text, learnt byte by byte," if request.data is None else f"the tokenizer of {request.data}"
        require_vocabulary(request.recipe, goal.vocab_size, what)
    model_config = _model_config(request, goal.vocab_size)
    model = _untrained(model_config, request.seed)
    require_named_outputs(model)
    if not model.has_state:
        raise ValueError("A layer of ska-paper has no state, so the model cannot be scored in segments: use ska.")
    _require_own_folder(request.output)
    return goal, config, model


def _model_config(request: TrainRequest, vocab_size: int) -> EchoConfig:
    overrides: dict[str, Any] = {}
    for setting in request.settings:
        name, equals, value = setting.partition("=")
        if not (name and equals):
            raise ValueError(f"--set takes FIELD=VALUE, as in --set rank=16, got {setting!r}.")
        if name == "vocab_size":
            raise ValueError("The vocabulary follows from what is learnt: use --vocab-size with a task, and no --set.")
        try:
            overrides[name] = json.loads(value)
        except json.JSONDecodeError:
            overrides[name] = value
        if name.startswith("_"):
            raise ValueError(f"--set {setting}: EchoConfig has no field {name}.")
    try:
        return preset(request.model, **overrides, vocab_size=vocab_size)
    except (TypeError, AttributeError) as error:  # a word where a number belongs, or a number where a list does
        raise ValueError(f"A value given by --set does not fit its field: {error}.") from None


def _untrained(config: EchoConfig, seed: int) -> EchoForCausalLM:
    torch.manual_seed(seed)
    try:
        return EchoForCausalLM(config)
    except RuntimeError as error:  # torch's own words for a size that no memory holds run over several lines
        raise ValueError(f"A model of these sizes cannot be built here: {str(error).splitlines()[0]}") from None


def _throughput(config: TrainingConfig, model_config: EchoConfig, goal: Goal) -> Throughput:
    """Peak memory, and the MFU where the peak of the device is known and the model's operations are counted."""
    device = training_device(config)
    peak = device_peak(device, uses_bfloat16(config, device))
    if peak is None:
        return Throughput(None, None, device)
    try:
        flops = training_cost(model_config, goal.length, tokens=1).flops_per_token
    except ValueError:  # nobody has counted the operations of one of its layers
        flops = None
    return Throughput(flops, peak * launched_processes(), device)


def _observers(
    request: TrainRequest, config: TrainingConfig, model: EchoForCausalLM, goal: Goal, throughput: Throughput
) -> AbstractContextManager[Observers]:
    """Those that were asked for."""
    assert request.output is not None
    configuration = {
        "training": dataclasses.asdict(config),
        "data": goal.data.describe(),
        "model": describe_model(model),
    }
    return open_observers(
        request.output,
        tensorboard=request.tensorboard,
        wandb_project=request.wandb,
        configuration=configuration,
        throughput=throughput,
    )


def _require_own_folder(output: Path | None) -> None:
    """A folder without checkpoints may hold nothing that the end of a run would overwrite; and nobody may train there.

    `train` asks the latter again, of all processes: here it is asked before anything is said.
    """
    if output is not None and output.is_dir() and launched_processes() == 1:
        with held_folder(output):
            pass
    if output is not None:
        require_records(output / "records.jsonl")
    if output is not None and (output / "model").exists() and not list_checkpoints(output):
        raise ValueError(f"{output / 'model'} exists and is not of a run that could go on: train in another directory.")


def _keep(record: RunRecord, model: EchoForCausalLM, output: Path, goal: Goal) -> None:
    """Save the model and append the record, unless the same run, scored on the same, was recorded before."""
    logging.disable_progress_bar()
    with whole_model(output / "model", replace=True) as folder:
        if goal.tokenizer is not None:
            end = goal.tokenizer.eos_token_id
            model.generation_config.eos_token_id = model.generation_config.pad_token_id = end
            goal.tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
    append_new(record, output / "records.jsonl", measured=("bytes_scored", "tokens_scored", "scored_blake2b"))


def _how_to_resume(output: Path | None) -> str:
    if output is None:
        return "Stopped; nothing was kept, for there was no --output."
    found = list_checkpoints(output)
    if not found:
        return f"Stopped before the first checkpoint in {output}: the same command starts again."
    return f"Stopped; give the same command again to go on from {found[-1]}."
