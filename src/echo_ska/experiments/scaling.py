"""scaling: how the loss on unseen text falls as Echo grows, and what that would say of echo-1b if it went on so.

Five widths of the preset echo-1m, 33 thousand to 0.92 million parameters without embedding and head, each trained byte
by byte on the same number of bytes. Each tries the same learning rates with seed 0, judged by other text than is
reported, and runs its seeds at its best. Then L(N) = E + A / N^a is fitted to the means; the interval is of laws that
are fitted to resampled seeds.

The extrapolation to echo-1b leaves the measured sizes by three orders of magnitude, and is of bytes of novels after a
fixed, small amount of text, not of tokens of the web: it says where the line points, not what would be found. Some four
hours on one core, by estimate, most of them for the two largest.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from echo_ska.benchmarks.cost import training_cost
from echo_ska.experiments.pool import Job, Stage
from echo_ska.experiments.recorded import RecordedRun, recorded, records_named, run_missing
from echo_ska.experiments.scaling_report import draw, rows
from echo_ska.experiments.studies import print_rows, seed_count, study_files
from echo_ska.experiments.trial import UNFINISHED
from echo_ska.models import EchoConfig, EchoForCausalLM, preset
from echo_ska.models.presets import build_on_meta
from echo_ska.training import (
    RunRecord,
    TextData,
    TextFile,
    TrainingConfig,
    bits_per_byte,
    book_path,
    load_text,
    make_record,
    split_by_file,
    train,
)
from echo_ska.training.resume import describe_model
from echo_ska.training.text import VOCAB_SIZE

NAME = "scaling"
SEEDS = 3


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
        widths: of the models, ascending; all else follows from it as in echo-1m.
        rates: learning rates that each tries.
        steps, batch_size, length: of every training.
        scored_bytes: of the held-out text, for the choice of a rate and again for the report.
    """

    widths: tuple[int, ...] = (24, 40, 64, 96, 128)
    rates: tuple[float, ...] = (4e-3, 8e-3, 1.6e-2)
    steps: int = 2000
    batch_size: int = 16
    length: int = 256
    scored_bytes: int = 65_536


PLAN = Plan()
QUICK = Plan(widths=(24, 40, 64), rates=(1.6e-2,), steps=100, scored_bytes=8192)


@dataclass(frozen=True)
class SizeRun:
    """One model, trained once and then asked.

    Attributes:
        width: d.
        learning_rate: the peak.
        seed: of weights and batches.
        text: a file or folder to learn and hold out of; None = the two novels that the package ships.
        plan: the rest.
    """

    width: int
    learning_rate: float
    seed: int
    text: Path | None
    plan: Plan

    def config(self) -> EchoConfig:
        """The architecture: echo-1m at another width, four heads whose keys are three quarters as wide as values."""
        head_dim = self.width // 4
        return preset("echo-1m", vocab_size=VOCAB_SIZE, hidden_size=self.width, rank=3 * head_dim // 4)

    def training_config(self) -> TrainingConfig:
        """On the CPU wherever it runs, as all trained experiments."""
        return TrainingConfig(
            steps=self.plan.steps, learning_rate=self.learning_rate, seed=self.seed, device="cpu", checkpoint_every=200
        )

    def data(self) -> TextData:
        """The training batches."""
        return TextData(texts(self.text)[0], self.plan.batch_size, self.plan.length, self.seed)

    def configuration(self) -> dict[str, Any]:
        """What its record has as configuration, known without running it, in the types that JSON gives."""
        held_out = texts(self.text)[1]
        digest = hashlib.blake2b(digest_size=16)
        for file in held_out:
            digest.update(file.tokens.numpy().tobytes())
        parts = {
            "training": dataclasses.asdict(self.training_config()),
            "data": self.data().describe(),
            "model": describe_model(build_on_meta(self.config())),
            "scored": {
                "files": [file.path.name for file in held_out],
                "blake2b": digest.hexdigest(),
                "bytes": self.plan.scored_bytes,
            },
        }
        as_json: dict[str, Any] = json.loads(json.dumps(parts))
        return as_json

    def recorded_run(self) -> RecordedRun:
        """The run as a job whose record can be found again."""
        configuration = self.configuration()
        digest = hashlib.sha256(json.dumps([configuration, self.seed], sort_keys=True).encode()).hexdigest()
        folder = UNFINISHED / f"{NAME}-{digest[:16]}"
        name = f"width {self.width}, rate {self.learning_rate:g}, seed {self.seed}"
        return RecordedRun(Job(name, run_size, {"run": self, "folder": folder}), self.seed, configuration, folder)


def run(
    console: Console, *, seeds: int | None = None, quick: bool = False, text: Path | None = None
) -> list[RunRecord]:
    """Run what is not recorded, print the table, draw the picture.

    Args:
        console: where to show.
        seeds: of every size at its best rate, three else; one in the quick form.
        quick: three sizes, a twentieth of the steps, one rate; recorded apart.
        text: a file or folder of text to learn, of which some is held out; None = the novels that the package ships.

    Raises:
        ValueError: the text cannot be read, or is too short.
        JobError: a run failed; those that ended before it are recorded.
    """
    path, picture = study_files(NAME, quick)
    records = run_plan(console, QUICK if quick else PLAN, seed_count(seeds, 1 if quick else SEEDS), path, text)
    print_rows(console, "Bits per byte of unseen text by size", rows(records))
    draw(records, picture)
    console.print(f"Records: {path}, picture: {picture}", markup=False, highlight=False, soft_wrap=True)
    return records


def run_plan(console: Console, plan: Plan, seeds: int, path: Path, text: Path | None) -> list[RunRecord]:
    """Every size at every rate with seed 0, then all seeds at its best: the records of those, by size and seed."""
    tries = [SizeRun(width, rate, 0, text, plan) for width in reversed(plan.widths) for rate in plan.rates]
    run_missing(console, NAME, [size.recorded_run() for size in tries], path)
    best = best_rates(tries, path)
    chosen = [SizeRun(width, best[width], seed, text, plan) for width in plan.widths for seed in range(seeds)]
    order = sorted(range(len(chosen)), key=lambda place: -chosen[place].width)  # the longest first
    found = run_missing(console, NAME, [chosen[place].recorded_run() for place in order], path)
    by_place = dict(zip(order, found, strict=True))
    return [by_place[place] for place in range(len(chosen))]


def best_rates(tries: Sequence[SizeRun], path: Path) -> dict[int, float]:
    """By width, the rate with the fewest bits per byte of the text that is there for this choice."""
    found = recorded(NAME, [size.recorded_run() for size in tries], path)
    best: dict[int, tuple[float, float]] = {}
    for size, record in zip(tries, found, strict=True):
        assert record is not None  # they have just been run
        merit = _merit(record)
        if size.width not in best or merit < best[size.width][0]:
            best[size.width] = (merit, size.learning_rate)
    return {width: rate for width, (_, rate) in best.items()}


def recorded_results(path: Path, plan: Plan = PLAN) -> list[RunRecord]:
    """What `run` has recorded of the text that most runs are of: of every size the seeds at its best rate.

    Nothing while a size or one of its rates is missing. Best is the rate with the most seeds, which is the one that was
    chosen; ties go to the fewer bits of the text for the choice.
    """
    by_text: dict[str, list[RunRecord]] = {}
    for record in records_named(NAME, path):
        parts = record.configuration
        by_text.setdefault(parts["data"]["blake2b"] + parts["scored"]["blake2b"], []).append(record)
    of_one: list[RunRecord] = max(by_text.values(), key=len, default=[])
    shown: list[RunRecord] = []
    for width in plan.widths:
        by_rate: dict[float, dict[int, RunRecord]] = {}
        for record in of_one:
            if record.figures["width"] == width:
                by_rate.setdefault(record.figures["learning_rate"], {})[record.seed] = record
        if not set(plan.rates) <= by_rate.keys():
            return []
        chosen = max(by_rate.values(), key=lambda seeds: (len(seeds), -_merit(next(iter(seeds.values())))))
        shown += [chosen[seed] for seed in sorted(chosen)]
    return shown


def _merit(record: RunRecord) -> float:
    bits = record.figures["tuning_bits_per_byte"]
    return float("inf") if bits is None else float(bits)


def run_size(stage: Stage, *, run: SizeRun, folder: Path) -> dict[str, Any]:
    """Train and ask one model: a `RunRecord` as plain data. A run that was stopped goes on from its last checkpoint."""
    torch.manual_seed(run.seed)
    config = run.config()
    network = EchoForCausalLM(config)
    tokens = run.plan.steps * run.plan.batch_size * run.plan.length
    cost = training_cost(config, run.plan.length, tokens)
    figures: dict[str, Any] = {
        "width": run.width,
        "learning_rate": run.learning_rate,
        "parameters": cost.parameters
        - config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2),
        "all_parameters": cost.parameters,
        "tokens": tokens,
        "flops": cost.flops,
    }
    started = time.perf_counter()
    try:
        record = train(network, run.data(), run.training_config(), directory=folder, reporter=stage("training"))
    except FloatingPointError as error:
        seconds = time.perf_counter() - started
        figures |= {"diverged": str(error), "bits_per_byte": None, "tuning_bits_per_byte": None, "training_loss": None}
    else:
        started = time.perf_counter()
        text = torch.cat([file.tokens for file in texts(run.text)[1]])
        scored = run.plan.scored_bytes
        figures |= {
            "training_loss": record.figures["loss"],
            "bits_per_byte": bits_per_byte(network, text[:scored]).bits_per_byte,
            "tuning_bits_per_byte": bits_per_byte(network, text[scored : 2 * scored]).bits_per_byte,
        }
        seconds = record.seconds + time.perf_counter() - started
    made = make_record(NAME, run.configuration(), figures, seed=run.seed, seconds=seconds)
    return dataclasses.asdict(made)


@functools.lru_cache(maxsize=2)
def texts(text: Path | None) -> tuple[list[TextFile], list[TextFile]]:
    """(to learn, held out): the shipped novels, or those of a file or folder, split by file.

    Raises:
        ValueError: see `load_text` and `split_by_file`.
    """
    if text is None:
        return load_text([book_path("train")]), load_text([book_path("unseen")])
    split = split_by_file(load_text([text]))
    return split.training, split.held_out
