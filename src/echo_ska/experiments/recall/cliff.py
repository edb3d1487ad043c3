"""cliff: what moves the point where recall breaks down, a larger model or a larger state?

Recall of 16 pairs (`mqar-grid`, 96 tokens), the same batches for all. Models of Mamba-2, SKA, Mamba-2 in three widths,
times four ranks of SKA's state with one head's width of values throughout, so that at a rank the state that recalls is
the same in every width. If the state sets the cliff, accuracy follows the rank and not the width. Plain ridge
regression (power 0). Two seeds at one learning rate; one to four minutes a run on one core.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure
from rich.console import Console

from echo_ska.experiments.trials.comparison import cell
from echo_ska.experiments.trials.figures import save
from echo_ska.experiments.trials.recorded import run_missing
from echo_ska.experiments.trials.studies import print_rows, seed_count, study_files
from echo_ska.experiments.trials.trial import Arm, Question, Trial
from echo_ska.tasks import MultiQueryRecallGrid
from echo_ska.training import RunRecord

NAME = "cliff"
TASK = MultiQueryRecallGrid(pairs=16, gap=32)
STEPS, BATCH_SIZE, RATE = 400, 32, 5e-3
SEEDS = 2
WIDTHS = (32, 64, 128)
RANKS = (2, 4, 8, 16)
HEADS, HEAD_DIM = 2, 16
QUESTIONS = (Question("96", TASK, 96, 512), Question("1,024", TASK, 1024, 64))


def arm(width: int, rank: int) -> Arm:
    """A model of that width whose SKA layer has that rank."""
    fields = {
        "hidden_size": width,
        "num_hidden_layers": 3,
        "layer_types": ["mamba2", "ska", "mamba2"],
        "num_heads": HEADS,
        "head_dim": HEAD_DIM,
        "rank": rank,
        "power": 0,
        "state_size": 16,
    }
    return Arm(f"width {width}, rank {rank}", fields)


def trials(quick: bool = False) -> list[Trial]:
    """Widths x ranks; `quick` leaves the largest width out."""
    widths = WIDTHS[:-1] if quick else WIDTHS
    return [
        Trial(NAME, arm(width, rank), TASK, STEPS, BATCH_SIZE, RATE, QUESTIONS)
        for width in reversed(widths)
        for rank in RANKS
    ]


def run(console: Console, *, seeds: int | None = None, quick: bool = False) -> list[RunRecord]:
    """Run what is not recorded, print the table and draw the picture.

    `quick` takes one seed and the two smaller widths, in files of its own.
    """
    path, picture = study_files(NAME, quick)
    records = records_of(console, path, seed_count(seeds, 1 if quick else SEEDS), quick)
    print_rows(console, f"Accuracy, %, on {TASK.pairs} pairs: mean over seeds (range)", rows(records))
    draw(records, picture)
    return records


def records_of(console: Console, path: Path, seeds: int, quick: bool = False) -> list[RunRecord]:
    """The records of every width and rank, run where they are missing."""
    runs = [trial.with_(seed=seed).recorded_run() for seed in range(seeds) for trial in trials(quick)]
    return run_missing(console, NAME, runs, path)


def rows(records: list[RunRecord]) -> list[list[str]]:
    """A row a length and width: parameters, and accuracy by rank."""
    table = [["tokens", "width", "parameters", *(f"rank {rank}" for rank in RANKS)]]
    for question, width in itertools.product(QUESTIONS, WIDTHS):
        found = {rank: [r for r in records if r.figures["arm"] == arm(width, rank).name] for rank in RANKS}
        if not all(found.values()):
            continue
        sizes = sorted({record.figures["parameters"] for of_rank in found.values() for record in of_rank})
        cells = [cell(found[rank], question.name) for rank in RANKS]
        table.append([question.name, str(width), f"{sizes[0]:,} to {sizes[-1]:,}", *cells])
    return table


def draw(records: list[RunRecord], path: Path) -> None:
    """Accuracy against rank, a line a width: if the state sets the cliff, the lines lie on one another."""
    figure = Figure(figsize=(6.5, 3.8), layout="constrained")
    axes = figure.subplots()
    for width, colour in zip(WIDTHS, ("#9CC8E6", "#0072B2", "#00324F"), strict=True):
        found = [[r for r in records if r.figures["arm"] == arm(width, rank).name] for rank in RANKS]
        if not all(found):
            continue
        values = [[100 * record.figures["accuracy"]["96"] for record in of_rank] for of_rank in found]
        parameters = found[-1][0].figures["parameters"]
        axes.fill_between(RANKS, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.15)
        label = f"width {width}: {parameters:,} parameters"
        axes.plot(RANKS, [fmean(v) for v in values], color=colour, marker="o", linewidth=2, label=label)
    axes.axhline(100 * TASK.chance, color="black", linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate("chance", (RANKS[0], 100 * TASK.chance), xytext=(0, 4), textcoords="offset points", fontsize=9)
    axes.set_xscale("log", base=2)
    axes.set_xticks(RANKS, [str(rank) for rank in RANKS])
    axes.minorticks_off()
    axes.set_xlabel("rank of each of SKA's two heads")
    axes.set_ylim(0, 101)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 0.08))
    axes.set_title(f"Answers right, %, {TASK.pairs} pairs in {TASK.length} tokens", loc="left", fontsize=11)
    save(figure, path)
