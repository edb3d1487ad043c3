"""length-generalisation (claim 2): trained on needles in 64 tokens, asked in up to 1,048,576.

Four needles, keys and values in filler, asked for at the end. SSM (as published, and with the aids that attention and
SKA have), SSM + attention (with rotary positions, and with none) and SSM + SKA of equal parameters, the same batches,
each at its best of the same rates, three seeds. The models with attention are asked up to 65,536 tokens: their cost
grows with the square of the length; so is the SSM with the aids. Six to fifty minutes a run on one core, most of it
reading the long sequences.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from echo_ska.experiments.trials.arms import AIDED, small_arms, with_controls
from echo_ska.experiments.trials.comparison import Results, draw_by_length, table_rows
from echo_ska.experiments.trials.figures import short_number
from echo_ska.experiments.trials.studies import print_rows, seed_count, study_files
from echo_ska.experiments.trials.trial import Arm, Question, Trial
from echo_ska.experiments.trials.tuning import Comparison
from echo_ska.tasks import Needle
from echo_ska.training import RunRecord

NAME = "length-generalisation"
TASK = Needle(needles=4, length=64)
STEPS, BATCH_SIZE = 400, 64
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
SEEDS = 3
LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096, 16_384, 65_536, 262_144, 1_048_576)
QUICK_LONGEST = 4096
LONGEST_OF_CONTROLS = 65_536
TOKENS_A_LENGTH = 524_288
MINIMUM_SEQUENCES = 8
"""Of the longest: 32 answers a seed."""

PAPER = {
    "ssm": (88.6, 82.1, 75.8, 66.9, 37.3, 2.0, 2.0),
    "ssm+attention": (88.5, 97.4, 92.9, 78.1, 64.8, 42.5, 5.0),
    "ssm+ska": (94.5, 89.4, 93.3, 95.6, 86.4, 81.2, 65.1),
}
"""The paper's figures, %, at 64 ... 4,096 tokens (arXiv 2605.06997)."""

TUNED_ON = (Question("64", TASK, 64, 2048),)


def trials(quick: bool = False) -> list[Trial]:
    """A trial an arm."""
    return [
        Trial(NAME, arm, TASK, STEPS, BATCH_SIZE, RATES[1], questions(arm, quick))
        for arm in with_controls(small_arms(TASK.vocab_size))
    ]


def questions(arm: Arm, quick: bool) -> tuple[Question, ...]:
    """What an arm is asked: 4 answers a sequence."""
    longest = QUICK_LONGEST if quick else LENGTHS[-1]
    if arm.name == AIDED or "full_attention" in arm.fields["layer_types"]:
        longest = min(longest, LONGEST_OF_CONTROLS)
    return tuple(
        Question(str(length), TASK, length, max(MINIMUM_SEQUENCES, TOKENS_A_LENGTH // length))
        for length in LENGTHS
        if length <= longest
    )


def run(console: Console, *, seeds: int | None = None, quick: bool = False, device: str = "cpu") -> list[RunRecord]:
    """Run what is not recorded, print the table and draw the picture.

    `quick` takes one seed, lengths up to 4,096 and the rates of the full records, in files of its own.
    """
    path, picture = study_files(NAME, quick)
    results = comparison(quick).on(device).run(console, seed_count(seeds, 1 if quick else SEEDS), path)
    print_rows(console, f"Accuracy, %, after training on {TASK.length} tokens", rows(results))
    draw(results, picture)
    return [record for records in results.values() for record in records]


def comparison(quick: bool = False) -> Comparison:
    """What is run."""
    full = Comparison(trials(), RATES, TUNED_ON)
    return full.at_recorded_rates(trials(quick), study_files(NAME)[0]) if quick else full


def rows(results: Results) -> list[list[str]]:
    """Accuracy by arm and length, the paper's own below."""
    asked = {str(length): short_number(length) for length in LENGTHS}
    asked = {name: heading for name, heading in asked.items() if name in results["ssm+ska"][0].figures["accuracy"]}
    table = table_rows(results, asked)
    for arm, figures in PAPER.items():
        cells = [f"{value:.1f}" for value in figures[: len(asked)]]
        table.append([f"paper: {arm}", *cells, *[""] * (len(asked) - len(cells))])
    return table


def draw(results: Results, path: Path) -> None:
    """Accuracy against length."""
    lengths = {name: int(name) for name in results["ssm+ska"][0].figures["accuracy"]}
    seeds = len(results["ssm+ska"])
    title = f"Needles found, %, after training on {TASK.length} tokens ({seeds} seed{'s' * (seeds > 1)})"
    draw_by_length(results, lengths, path, title, TASK.chance)
