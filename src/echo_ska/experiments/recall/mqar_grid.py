"""mqar-grid (claim 1): pairs 4, 8, 16, 32 times gaps 64 ... 4,096, by models trained at the shortest gap alone.

The paper trains on every cell. Here one model an arm is trained on 32 pairs over a gap of 64 (192 tokens) and asked
every cell, so that all other cells, fewer pairs and up to 64 times the gap, are asked without having been trained. No
mask is handed to anyone. Small models (width 64, two heads of rank 32), the SSM as published and with the aids of the
others, attention with rotary positions and with none, each arm at its best of the same rates, three seeds; about five
minutes a run on one core.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure
from rich.console import Console

from echo_ska.experiments.trials.arms import small_arms, with_controls
from echo_ska.experiments.trials.comparison import Results
from echo_ska.experiments.trials.figures import percent, percent_grid, save, short_number
from echo_ska.experiments.trials.studies import print_rows, seed_count, study_files
from echo_ska.experiments.trials.trial import Question, Trial
from echo_ska.experiments.trials.tuning import Comparison
from echo_ska.tasks import MultiQueryRecallGrid
from echo_ska.training import RunRecord

NAME = "mqar-grid"
PAIRS = (4, 8, 16, 32)
GAPS = (64, 128, 256, 512, 1024, 2048, 4096)
TASK = MultiQueryRecallGrid(pairs=32, gap=64)
RANK = 32
STEPS, BATCH_SIZE = 800, 32
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
SEEDS = 3
ANSWERS = 1024
"""In a cell, or those of `MINIMUM_SEQUENCES` sequences if that is more."""
MINIMUM_SEQUENCES = 64

TUNED_ON = (Question("32 x 64", TASK, TASK.length, 256),)


def trials(quick: bool = False) -> list[Trial]:
    """A trial an arm."""
    gaps = GAPS[:3] if quick else GAPS
    questions = tuple(cell(pairs, gap) for gap in gaps for pairs in PAIRS)
    arms = with_controls(small_arms(TASK.vocab_size, rank=RANK))
    return [Trial(NAME, arm, TASK, STEPS // (2 if quick else 1), BATCH_SIZE, RATES[1], questions) for arm in arms]


def cell(pairs: int, gap: int) -> Question:
    """One cell of the grid as a question."""
    task = MultiQueryRecallGrid(pairs=pairs, gap=gap)
    return Question(f"{pairs} x {gap}", task, task.length, max(MINIMUM_SEQUENCES, ANSWERS // pairs))


def run(console: Console, *, seeds: int | None = None, quick: bool = False, device: str = "cpu") -> list[RunRecord]:
    """Run what is not recorded, print the table and draw the picture.

    `quick` takes one seed, half the steps, gaps up to 256 and the rates of the full records, in files of its own.
    """
    path, picture = study_files(NAME, quick)
    results = comparison(quick).on(device).run(console, seed_count(seeds, 1 if quick else SEEDS), path)
    print_rows(console, "Accuracy, %, mean over seeds (lowest seed) by pairs x gap", rows(results))
    draw(results, picture)
    return [record for records in results.values() for record in records]


def comparison(quick: bool = False) -> Comparison:
    """What is run."""
    full = Comparison(trials(), RATES, TUNED_ON)
    return full.at_recorded_rates(trials(quick), study_files(NAME)[0]) if quick else full


def rows(results: Results) -> list[list[str]]:
    """A row an arm and number of pairs: the mean over seeds, and the lowest seed, for every gap."""
    gaps = gaps_of(results)
    table = [["model", "pairs", *(f"gap {short_number(gap)}" for gap in gaps)]]
    for arm, records in results.items():
        for pairs in PAIRS:
            cells = []
            for gap in gaps:
                values = [record.figures["accuracy"][f"{pairs} x {gap}"] for record in records]
                cells.append(f"{percent(fmean(values))} ({percent(min(values))})")
            table.append([arm, str(pairs), *cells])
    return table


def gaps_of(results: Results) -> list[int]:
    """The gaps that were asked."""
    accuracy = next(iter(results.values()))[0].figures["accuracy"]
    return sorted({int(name.split(" x ")[1]) for name in accuracy})


def draw(results: Results, path: Path) -> None:
    """The grid of every arm: mean accuracy over seeds, darker for more."""
    gaps = gaps_of(results)
    figure = Figure(figsize=(3.5 * len(results), 3.1), layout="constrained")
    for place, (axes, (arm, records)) in enumerate(
        zip(figure.subplots(1, len(results), sharey=True), results.items(), strict=True)
    ):
        grid = [
            [100 * fmean(record.figures["accuracy"][f"{pairs} x {gap}"] for record in records) for gap in gaps]
            for pairs in PAIRS
        ]
        percent_grid(axes, grid, origin="lower")
        axes.set_xticks(range(len(gaps)), [short_number(gap) for gap in gaps])
        axes.set_yticks(range(len(PAIRS)), [str(pairs) for pairs in PAIRS])
        axes.set_xlabel("gap, tokens")
        if place == 0:
            axes.set_ylabel("pairs")
        axes.set_title(arm, loc="left", fontsize=11)
    figure.suptitle(
        f"Answers right, %, by models trained on {TASK.pairs} pairs over a gap of {TASK.gap}", x=0.01, ha="left"
    )
    save(figure, path)
