"""`echo-ska convert`: another model's attention becomes SKA; what was lost and gained is printed and kept."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from echo_ska.commands.keep import whole_model
from echo_ska.commands.load import read_tokenizer, require_known
from echo_ska.commands.rare_lines import say
from echo_ska.convert.conversion import ConversionMeasure, ConversionRecipe, cache_table, convert, trained_on
from echo_ska.convert.data import TokenWindows, WithCopying
from echo_ska.convert.hosts import decoder_layers, learnt_positions
from echo_ska.convert.replace import cast_converted
from echo_ska.evaluation.memory_plot import format_bytes
from echo_ska.models.loading import unreported
from echo_ska.models.own_code import OWN_CODE_IS_NOT_RUN, refusing_own_code
from echo_ska.models.shapes import require_shapes
from echo_ska.training import (
    DataSource,
    Reporter,
    TextFile,
    TrainingConfig,
    console_reporter,
    load_text,
    make_record,
    split_by_file,
)
from echo_ska.training.device import training_device
from echo_ska.training.records import append_new, require_records, write_json
from echo_ska.training.text import VOCAB_SIZE, digest

EVALUATION_SEED = 1_000_003
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model", "spiece.model")
"""By any of which a folder has a tokenizer."""


@dataclass(frozen=True)
class ConvertRequest:
    """What was asked for; the options of `echo-ska convert`, which documents them."""

    model: Path
    text: list[str]
    output: Path
    layers: str
    init: Any
    rank: int | None
    length: int
    batch_size: int
    steps: tuple[int, int]
    rates: tuple[float, float]
    kl_weight: float
    copy_every: int
    control: bool
    seed: int
    device: str

    def recipe(self) -> ConversionRecipe:
        """As `convert` takes it."""
        both = TrainingConfig(steps=1, seed=self.seed, device=self.device, checkpoint_every=100)
        first, second = zip(self.steps, self.rates, strict=True)
        return ConversionRecipe(
            layers=self.layers,
            init=self.init,
            rank=self.rank,
            settings={"output_norm": False},
            matching=dataclasses.replace(both, steps=first[0], learning_rate=first[1], weight_decay=0.0),
            finetuning=dataclasses.replace(both, steps=second[0], learning_rate=second[1]),
            kl_weight=self.kl_weight,
        )


def start_convert(request: ConvertRequest, json_file: Path | None, console: Console) -> None:
    """Convert, distil, report and keep.

    Raises:
        ValueError: the model, the text, the settings or the output folder do not fit; nothing was overwritten.
        OSError: a checkpoint or the model could not be written; the checkpoints before it stay.
        KeyboardInterrupt: Ctrl-C; the message says how to go on.
    """
    kept = request.output / "model"
    if kept.exists():
        raise ValueError(f"{kept} exists: name another --output, nothing is overwritten.")
    if request.copy_every == 1:
        raise ValueError(
            "--copy-every must be 0, which leaves copying out, or at least 2, got 1: text has to be learnt too."
        )
    require_records(request.output / "records.jsonl")
    recipe = request.recipe()
    device = training_device(recipe.matching)
    original, tokenizer = load_host(request.model)
    decoder_layers(original)  # raises for models that are not supported
    positions = learnt_positions(original)
    if positions is not None and request.length > positions:
        raise ValueError(
            f"{request.model} has learnt {positions} positions: --length must be at most that, got {request.length}."
        )
    kept_in = original.dtype
    if kept_in.itemsize < 4:
        original.float()  # in which training loses nothing
    split = split_by_file(load_text(request.text))
    training, held_out = encoded(split.training, tokenizer), encoded(split.held_out, tokenizer)
    vocab_size = original.config.vocab_size
    data: DataSource = TokenWindows(training, request.batch_size, request.length, request.seed)
    if request.copy_every:
        data = WithCopying(data, vocab_size, request.seed, request.copy_every)
    if not len(held_out):
        raise ValueError("The tokenizer makes no token of the held-out text: give more text.")
    characters = sum(len(file.tokens) for file in split.held_out)
    measure = ConversionMeasure(
        held_out, vocab_size, request.length, bytes_per_token=characters / len(held_out), seed=EVALUATION_SEED
    )
    say(console, f"{request.model}: {original.num_parameters():,} parameters. {split.description}")
    started = time.perf_counter()
    original.to(device)
    try:
        with contextlib.ExitStack() as stack:

            def stage(name: str) -> Reporter:
                stack.close()  # one live display at a time
                return stack.enter_context(console_reporter(name, console))

            student, replacement, states = convert(
                original, data, recipe, measure, directory=request.output, stage=stage
            )
            figures: dict[str, Any] = {"original": measure(original), **states}
            if request.control:
                control = trained_on(original, data, recipe, directory=request.output, reporter=stage("control"))
                figures["control"] = measure(control)
            assert isinstance(student, PreTrainedModel)
            if student.dtype != kept_in:
                replacement = cast_converted(student, kept_in, replacement)
                figures["kept"] = measure(student)
    except KeyboardInterrupt:
        if not request.output.exists():
            raise KeyboardInterrupt("Stopped before anything was kept: the same command starts again.") from None
        raise KeyboardInterrupt(f"Stopped; give the same command again to go on from {request.output}.") from None
    figures |= {"replacement": dataclasses.asdict(replacement), "cache_bytes": cache_table(replacement)}
    console.print(states_table(figures, request.steps, kept_in))
    console.print(cache_shown(figures["cache_bytes"]))
    say(
        console,
        f"{len(replacement.layers)} layers are SKA now: {replacement.carried:,} parameters carried over, "
        f"{replacement.new:,} new. Their states take {format_bytes(replacement.state_bytes)}, less than their keys and "
        f"values from {replacement.break_even:,} tokens on.",
    )
    logging.disable_progress_bar()
    configuration = {
        "model": str(request.model),
        "kept_in": str(kept_in),
        "data": data.describe(),
        "held_out": {"tokens": len(held_out), "blake2b": digest(held_out.long())},
        "control": request.control,
        "recipe": dataclasses.asdict(recipe),
    }
    record = make_record("convert", configuration, figures, seed=request.seed, seconds=time.perf_counter() - started)
    with whole_model(kept) as folder:
        student.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        append_new(record, request.output / "records.jsonl")
    say(console, f"Kept in {request.output}: model, checkpoints, records.jsonl.")
    write_json(json_file, dataclasses.asdict(record))


def states_table(figures: dict[str, Any], steps: tuple[int, int], kept_in: torch.dtype) -> Table:
    """What every state scores."""
    periods = list(figures["original"]["copied"])
    headings = (f"copied, {period} tokens" for period in periods)
    table = Table("model", "bits per byte", *headings, title="What was lost and regained")
    for name, label in (
        ("original", "original"),
        ("control", f"original, {sum(steps):,} steps more"),
        ("replaced", "replaced, untrained"),
        ("matched", f"after {steps[0]:,} steps of matching"),
        ("finetuned", f"after {steps[1]:,} steps of cross-entropy"),
        ("kept", f"as it is kept, in {str(kept_in).removeprefix('torch.')}"),
    ):
        if name in figures:
            copied = (f"{figures[name]['copied'][period]:.1%}" for period in periods)
            table.add_row(label, f"{figures[name]['bits_per_byte']:.3f}", *copied)
    return table


def cache_shown(sizes: dict[str, dict[str, int]]) -> Table:
    """Bytes of one sequence's cache by tokens."""
    table = Table("tokens", "original", "converted", title="Cache of one sequence")
    for tokens, found in sizes.items():
        table.add_row(f"{int(tokens):,}", format_bytes(found["before"]), format_bytes(found["after"]))
    return table


def load_host(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """A model in the dtype it was saved in, and its tokenizer; None for a model of the 256 bytes without one.

    Raises:
        ValueError: `folder` holds no model in safetensors, not all of its weights, no tokenizer where it needs one, or
            one that cannot be read or has ids that the model does not know.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is not the folder of a model: it has no config.json.")
    logging.disable_progress_bar()
    try:
        with refusing_own_code(folder), unreported():
            model, found = AutoModelForCausalLM.from_pretrained(
                folder,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below
                **OWN_CODE_IS_NOT_RUN,
            )
    except (OSError, ValueError, SafetensorError, RuntimeError) as error:
        raise ValueError(f"The model in {folder} cannot be read: {str(error).strip().splitlines()[0]}") from None
    require_shapes(model, found["mismatched_keys"], folder)
    if lacking := sorted(found["missing_keys"]):
        named = ", ".join(lacking[:3]) + (f" and {len(lacking) - 3} more" if len(lacking) > 3 else "")
        raise ValueError(f"The weights in {folder} are not all of this model, missing: {named}.")
    require_known(found["unexpected_keys"], folder)
    vocab_size = model.config.vocab_size
    if any((folder / name).is_file() for name in TOKENIZER_FILES):
        return model.eval(), read_tokenizer(folder, vocab_size)
    if vocab_size != VOCAB_SIZE:
        raise ValueError(
            f"{folder} has no tokenizer.json, and a vocabulary of {vocab_size} is not the 256 bytes: save the model's "
            "tokenizer there."
        )
    return model.eval(), None


def encoded(files: list[TextFile], tokenizer: PreTrainedTokenizerBase | None) -> Tensor:
    """All texts, one behind the other, as tokens [N]: the bytes themselves where there is no tokenizer."""
    if tokenizer is None:
        return torch.cat([file.tokens for file in files])
    ids: list[int] = []
    for file in files:
        ids += tokenizer(bytes(file.tokens.tolist()).decode("utf-8"), add_special_tokens=False)["input_ids"]
    return torch.tensor(ids)
