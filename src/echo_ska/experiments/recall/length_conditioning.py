"""length-conditioning (claim 5): does accuracy grow with the sequence, because lambda_min of the Gram matrix grows?

Four needles in 64 ... 65,536 tokens, by the small SSM + SKA trained at 64: as it is, and without a write gate, so that
every filler is stored too. At each length, accuracy, the margin of the right answer's logit over the best other one,
and the smallest and largest eigenvalue of each head's Gram matrix beside its ridge. Three seeds at one learning rate,
the same for both; about two minutes a run on one core.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console

from echo_ska.experiments.trials.arms import ECHO, small
from echo_ska.experiments.trials.changes import no_gate, ska_layers
from echo_ska.experiments.trials.comparison import Results, cell, converged
from echo_ska.experiments.trials.figures import length_axis, mean_with_range, save
from echo_ska.experiments.trials.studies import print_rows, seed_count, study_files
from echo_ska.experiments.trials.trial import EVALUATION_SEED, SEGMENT_LENGTH, Arm, Question, Trial
from echo_ska.experiments.trials.tuning import recorded_seeds, run_seeds
from echo_ska.models import EchoForCausalLM
from echo_ska.models.segments import read_in_segments
from echo_ska.tasks import Needle, answer_positions
from echo_ska.training import RunRecord

NAME = "length-conditioning"
TASK = Needle(needles=4, length=64)
STEPS, BATCH_SIZE, RATE = 400, 64, 1e-2
SEEDS = 3
LENGTHS = (64, 256, 1024, 4096, 16_384, 65_536)
QUICK_LONGEST = 4096
ANSWERS = 1024
MEASURED = 4
"""Sequences of each length whose Gram matrices and margins are looked at."""

LOWEST = 1e-4
"""What is drawn for a smaller lambda_min, since the axis is logarithmic."""

GATED, UNGATED = "with a write gate", "every token stored"
ARMS = (
    Arm(GATED, small("ska").fields),
    Arm(UNGATED, small("ska").fields, changes=(no_gate,)),
)
COLOURS = {GATED: "#0072B2", UNGATED: "#D55E00"}


def trials(quick: bool = False) -> list[Trial]:
    """Both arms."""
    longest = QUICK_LONGEST if quick else LENGTHS[-1]
    questions = tuple(
        Question(str(length), TASK, length, max(8, min(ANSWERS // TASK.needles, 1_048_576 // length)))
        for length in LENGTHS
        if length <= longest
    )
    return [Trial(NAME, arm, TASK, STEPS, BATCH_SIZE, RATE, questions, measure=conditioning) for arm in ARMS]


@torch.no_grad()
def conditioning(network: EchoForCausalLM, trial: Trial) -> dict[str, Any]:
    """By length, means over sequences: each head's lambda_min and lambda_max, and the margin of the right answers."""
    (ska,) = ska_layers(network)
    place = trial.arm.fields["layer_types"].index("ska")
    found: dict[str, Any] = {}
    for question in trial.questions:
        generator = torch.Generator().manual_seed(EVALUATION_SEED)
        eigenvalues, margins = [], []
        for _ in range(MEASURED):
            batch = question.task.with_length(question.length).sample(1, generator)
            rows, positions = answer_positions(batch.labels)
            logits, cache = _logits(network, batch.input_ids, positions - 1)
            answers = batch.labels[rows, positions]
            right = logits.gather(1, answers[:, None])[:, 0]
            margins += (right - logits.scatter(1, answers[:, None], float("-inf")).amax(dim=1)).tolist()
            gram = cache.layers[place].state.compact().recurrent.statistics.gram[0]  # [H, r, r]
            eigenvalues.append(torch.linalg.eigvalsh(gram))  # [H, r], ascending
        spectra = torch.stack(eigenvalues).mean(dim=0)
        found[question.name] = {
            "lambda_min": spectra[:, 0].tolist(),
            "lambda_max": spectra[:, -1].tolist(),
            "margin": fmean(margins),
        }
    return {"conditioning": found, "ridge": ska.ridge.tolist()}


def _logits(network: EchoForCausalLM, input_ids: torch.Tensor, columns: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """Logits [N, V] at the ascending positions `columns` [N] of one sequence, and the cache after it."""
    parts = []
    for _, output in read_in_segments(
        network,
        input_ids,
        SEGMENT_LENGTH,
        use_cache=True,
        more=lambda begin, end: {"logits_to_keep": columns[(columns >= begin) & (columns < end)] - begin},
    ):
        parts.append(output.logits[0])
        cache = output.past_key_values
    return torch.cat(parts), cache


def run(console: Console, *, seeds: int | None = None, quick: bool = False) -> list[RunRecord]:
    """Run what is not recorded, print the table and draw the picture.

    `quick` takes one seed and lengths up to 4,096, in files of its own.
    """
    path, picture = study_files(NAME, quick)
    results = run_seeds(console, trials(quick), seed_count(seeds, 1 if quick else SEEDS), path)
    print_rows(console, "Conditioning and accuracy by length, medians over heads, means over seeds", rows(results))
    draw(results, picture)
    return [record for records in results.values() for record in records]


def recorded_results(path: Path) -> Results:
    """What is recorded of both arms."""
    found = {trial.arm.name: recorded_seeds(trial, path) for trial in trials()}
    return {arm: records for arm, records in found.items() if records}


def _over_seeds(records: Sequence[RunRecord], length: str, name: str) -> float:
    """A figure at a length: of the heads the median, of the seeds the mean."""
    values = [record.figures["conditioning"][length][name] for record in records]
    return fmean(median(value) if isinstance(value, list) else value for value in values)


def rows(results: Results) -> list[list[str]]:
    """A row an arm and length."""
    table = [["model", "tokens", "accuracy, %", "margin", "lambda_min", "lambda_max", "ridge"]]
    for arm, records in converged(results).items():
        ridge = fmean(median(record.figures["ridge"]) for record in records)
        for length in records[0].figures["accuracy"]:
            table.append(
                [
                    f"{ECHO} {arm}",
                    f"{int(length):,}",
                    cell(records, length),
                    mean_with_range(
                        [record.figures["conditioning"][length]["margin"] for record in records], "{:.1f}".format
                    ),
                    f"{_over_seeds(records, length, 'lambda_min'):.3g}",
                    f"{_over_seeds(records, length, 'lambda_max'):.3g}",
                    f"{ridge:.2f}",
                ]
            )
    return table


def draw(results: Results, path: Path) -> None:
    """Accuracy, margin and lambda_min against length, side by side: every seed thin, the mean thick."""
    lengths = [int(length) for length in next(iter(results.values()))[0].figures["accuracy"]]
    results = converged(results)
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    panels = figure.subplots(1, 3)
    for arm, records in results.items():
        curves = {
            "answers right, %": [[100 * r.figures["accuracy"][str(n)] for n in lengths] for r in records],
            "margin of the right answer's logit": [
                [r.figures["conditioning"][str(n)]["margin"] for n in lengths] for r in records
            ],
            f"lambda_min of the median head (0 drawn at {LOWEST:g})": [
                [max(LOWEST, median(r.figures["conditioning"][str(n)]["lambda_min"])) for n in lengths] for r in records
            ],
        }
        for axes, (title, lines) in zip(panels, curves.items(), strict=True):
            for line in lines:
                axes.plot(lengths, line, color=COLOURS[arm], linewidth=1, alpha=0.35)
            mean = [fmean(values) for values in zip(*lines, strict=True)]
            axes.plot(lengths, mean, color=COLOURS[arm], linewidth=2, marker="o", markersize=4, label=arm)
            axes.set_title(title, loc="left", fontsize=10)
    for axes in panels:
        length_axis(axes, lengths, "tokens")
    panels[0].set_ylim(0, 102)
    panels[2].set_yscale("log")
    if results:
        ridge = fmean(median(record.figures["ridge"]) for records in results.values() for record in records)
        panels[2].axhline(ridge, color="black", linewidth=1, linestyle=(0, (4, 3)))
        panels[2].annotate("ridge", (lengths[0], ridge), xytext=(2, 4), textcoords="offset points", fontsize=9)
    figure.legend(*panels[0].get_legend_handles_labels(), frameon=False, ncols=2, loc="outside upper left", fontsize=10)
    save(figure, path)
