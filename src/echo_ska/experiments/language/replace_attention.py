"""replace-attention: what is lost and gained when a trained model's softmax attention is replaced by SKA?

A byte-level Llama of 0.7M parameters, four layers of width 128 with four heads, learns a novel and, in every fourth
batch, to copy 24 random bytes again and again (recall, which text alone would not teach it in this budget; a period
that varies is not learnt in it either, so what the original learns is to look 24 bytes back, which takes positions).
Then all of its attention layers, or every second, become SKA: with the projections carried over, or afresh. Measured on
held-out text and held-out copies: the original, the replaced model without training, after the first stage (every layer
held to the attention it replaced) and after the second (cross-entropy). The control is the original, trained on the
same batches for as many steps as both stages together. Three seeds; two to four minutes a run on one core.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from echo_ska.convert.conversion import ConversionMeasure, ConversionRecipe, cache_table, convert, trained_on
from echo_ska.convert.data import WithCopying
from echo_ska.experiments.language.replace_attention_results import ARMS, CONTROL, ORIGINAL, PERIOD, cache_rows, rows
from echo_ska.experiments.trials.pool import Job, Stage
from echo_ska.experiments.trials.recorded import RecordedRun, recorded, run_missing
from echo_ska.experiments.trials.studies import print_rows, seed_count, study_files
from echo_ska.training import (
    RunRecord,
    TextData,
    TextSplit,
    TrainingConfig,
    book_path,
    load_text,
    make_record,
    split_by_file,
    train,
)
from echo_ska.training.checkpoint import list_checkpoints
from echo_ska.training.text import VOCAB_SIZE

NAME = "replace-attention"
SEEDS = 3
WIDTH, LAYERS, HEADS = 128, 4, 4
LENGTH, BATCH_SIZE = 128, 16
ORIGINAL_STEPS, MATCHING_STEPS, FINETUNING_STEPS = 700, 200, 300
QUICK_STEPS = (500, 100, 150)
ORIGINAL_RATE, MATCHING_RATE, FINETUNING_RATE = 3e-3, 1e-2, 3e-3
EVALUATION_SEED = 1_000_003
UNFINISHED = Path("results") / "unfinished" / NAME


@dataclass(frozen=True)
class ConversionRun:
    """The original, the control or one conversion of it.

    Attributes:
        arm: `ORIGINAL`, `CONTROL` or a name in `ARMS`.
        seed: of weights and batches.
        steps: of the original's training, of matching and of cross-entropy.
    """

    arm: str
    seed: int = 0
    steps: tuple[int, int, int] = (ORIGINAL_STEPS, MATCHING_STEPS, FINETUNING_STEPS)

    def original_config(self) -> TrainingConfig:
        """How the original is trained. On the CPU, as everything here."""
        return TrainingConfig(
            steps=self.steps[0], learning_rate=ORIGINAL_RATE, seed=self.seed, device="cpu", checkpoint_every=100
        )

    def recipe(self) -> ConversionRecipe:
        """How it is converted; of the control, what its further training is made of."""
        layers, init = ARMS.get(self.arm, ("all", "carry"))
        further = dataclasses.replace(self.original_config(), seed=self.seed + 1)
        return ConversionRecipe(
            layers=layers,
            init=init,
            settings={"output_norm": False},
            matching=dataclasses.replace(further, steps=self.steps[1], learning_rate=MATCHING_RATE, weight_decay=0.0),
            finetuning=dataclasses.replace(further, steps=self.steps[2], learning_rate=FINETUNING_RATE),
        )

    def configuration(self) -> dict[str, Any]:
        """What its record has as configuration, known without running it, in the types that JSON gives."""
        parts = {
            "arm": self.arm,
            "model": {"width": WIDTH, "layers": LAYERS, "heads": HEADS, "vocab_size": VOCAB_SIZE},
            "data": {"length": LENGTH, "batch_size": BATCH_SIZE, "text": book_path("train").name, "period": PERIOD},
            "original": dataclasses.asdict(self.original_config()),
            "recipe": None if self.arm == ORIGINAL else dataclasses.asdict(self.recipe()),
            "measured": EVALUATION_SEED,
        }
        as_json: dict[str, Any] = json.loads(json.dumps(parts))
        return as_json

    def folder(self) -> Path:
        """Where checkpoints are kept: the original's until all of its seed is recorded, others' until they are."""
        steps = "-".join(str(count) for count in (self.steps[:1] if self.arm == ORIGINAL else self.steps))
        return UNFINISHED / f"{self.arm.replace(', ', '-').replace(' ', '-')}-{self.seed}-{steps}"

    def recorded_run(self) -> RecordedRun:
        """As a job whose record can be found again."""
        job = Job(f"{self.arm}, seed {self.seed}", run_conversion, {"run": self})
        folder = None if self.arm == ORIGINAL else self.folder()
        return RecordedRun(job, self.seed, self.configuration(), folder)


def original_model(seed: int) -> LlamaForCausalLM:
    """The untrained original."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            max_position_embeddings=4096,
            initializer_range=0.06,  # of a token's size, 0.7 / sqrt(width)
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
    )


def batches(split: TextSplit, seed: int) -> WithCopying:
    """Windows of the text, and every fourth batch copies."""
    text = TextData(split.training, BATCH_SIZE, LENGTH, seed)
    return WithCopying(text, VOCAB_SIZE, seed, periods=(PERIOD, PERIOD))


def run_conversion(stage: Stage, *, run: ConversionRun) -> dict[str, Any]:
    """Train, convert and measure what `run` says: a `RunRecord` as plain data."""
    started = time.perf_counter()
    split = split_by_file(load_text([book_path("train")]))
    measure = ConversionMeasure(split.held_out[0].tokens, VOCAB_SIZE, LENGTH, seed=EVALUATION_SEED, periods=(PERIOD,))
    original = trained_original(stage, run, split)
    figures: dict[str, Any] = {"arm": run.arm, "parameters": sum(p.numel() for p in original.parameters())}
    further = batches(split, run.seed + 1)
    if run.arm == ORIGINAL:
        figures["finetuned"] = measure(original)
    elif run.arm == CONTROL:
        control = trained_on(
            original, further, run.recipe(), directory=run.folder(), reporter=stage("further training")
        )
        figures["finetuned"] = measure(control)
    else:
        student, replacement, states = convert(
            original, further, run.recipe(), measure, directory=run.folder(), stage=stage
        )
        figures |= states
        figures["parameters"] = sum(p.numel() for p in student.parameters())
        figures["replacement"] = dataclasses.asdict(replacement)
        figures["cache_bytes"] = cache_table(replacement)
    seconds = time.perf_counter() - started
    return dataclasses.asdict(make_record(NAME, run.configuration(), figures, seed=run.seed, seconds=seconds))


def trained_original(stage: Stage, run: ConversionRun, split: TextSplit) -> nn.Module:
    """The original of a seed, from the checkpoint that its own run left, or trained (again) where there is none."""
    own = dataclasses.replace(run, arm=ORIGINAL)
    config, folder = own.original_config(), own.folder()
    found = list_checkpoints(folder) if folder.is_dir() else []
    if run.arm != ORIGINAL and not (found and found[-1].name == f"step-{config.steps:06d}"):
        folder = run.folder() / "original"  # not the shared one: another run may be writing there
    model = original_model(run.seed)
    train(model, batches(split, run.seed), config, directory=folder, reporter=stage("original"))
    return model.eval()


def run(console: Console, *, seeds: int | None = None, quick: bool = False) -> list[RunRecord]:
    """Run what is not recorded, print the tables and draw the picture.

    `quick` takes one seed and fewer steps, in files of its own.

    Raises:
        ValueError: `seeds` is below 1, or the records cannot be read.
        JobError: a run failed; those that ended before it are recorded.
    """
    from echo_ska.experiments.language.replace_attention_figure import draw  # matplotlib, which jobs do without

    count = seed_count(seeds, 1 if quick else SEEDS)
    path, picture = study_files(NAME, quick)
    planned = runs(count, quick)
    originals = [one for one in planned if one.arm == ORIGINAL]
    run_missing(console, NAME, [one.recorded_run() for one in originals], path)
    run_missing(console, NAME, [one.recorded_run() for one in planned], path)
    for one in originals:
        shutil.rmtree(one.folder(), ignore_errors=True)
    results = recorded_results(path, count, quick)
    print_rows(console, "Held-out text, bits per byte: mean over seeds (lowest-highest)", rows(results))
    print_rows(console, f"{PERIOD} random bytes copied right, %", rows(results, PERIOD))
    print_rows(console, "Cache of one sequence, bytes", cache_rows(results))
    draw(results, picture)
    return [record for records in results.values() for record in records]


def runs(seeds: int = SEEDS, quick: bool = False) -> list[ConversionRun]:
    """All runs, the longest first, the originals behind them."""
    arms = [*ARMS, CONTROL, ORIGINAL]
    steps = QUICK_STEPS if quick else (ORIGINAL_STEPS, MATCHING_STEPS, FINETUNING_STEPS)
    return [ConversionRun(arm, seed, steps) for arm in arms for seed in range(seeds)]


def recorded_results(path: Path, seeds: int = SEEDS, quick: bool = False) -> dict[str, list[RunRecord]]:
    """What is recorded, by arm, the original first."""
    planned = runs(seeds, quick)
    found = recorded(NAME, [one.recorded_run() for one in planned], path)
    results = {}
    for arm in (ORIGINAL, CONTROL, *ARMS):
        records = [r for one, r in zip(planned, found, strict=True) if one.arm == arm and r is not None]
        if records:
            results[arm] = records
    return results
