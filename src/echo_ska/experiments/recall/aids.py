"""aids: how much of the recall is the ridge solve, how much the filter, and how much the aids that all mixers can have?

SKA (plain ridge, and the blended filter), linear attention, DeltaNet and gated DeltaNet in the middle of the small
model, all with the same aids by the same code: short convolutions, keys that start delayed, W_q started as W_k, a write
gate on the pair, a norm of what is read. Then one aid is taken away at a time, from all of them alike. Recall of 16
pairs in 96 tokens (`mqar-grid`), as many pairs as a head has ranks. Each mixer is tried at the same rates with all aids
and keeps its best throughout; two seeds; about 40 seconds a run on one core.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console

from echo_ska.experiments.trials.arms import small
from echo_ska.experiments.trials.changes import (
    Change,
    no_convolution,
    no_delay,
    no_gate,
    no_output_norm,
    own_queries,
    spread_decays,
)
from echo_ska.experiments.trials.comparison import Results, cell
from echo_ska.experiments.trials.figures import percent_grid, save
from echo_ska.experiments.trials.studies import print_rows, seed_count, study_files
from echo_ska.experiments.trials.trial import Question, Trial
from echo_ska.experiments.trials.tuning import Comparison, mean_and_range, recorded_seeds, run_seeds
from echo_ska.tasks import MultiQueryRecallGrid
from echo_ska.training import RunRecord

NAME = "aids"
TASK = MultiQueryRecallGrid(pairs=16, gap=32)
STEPS, BATCH_SIZE = 250, 32
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
SEEDS = 2
QUESTIONS = (Question("96", TASK, 96, 512), Question("1,024", TASK, 1024, 64))

MIXERS = {
    "SKA, plain ridge": small("ska", power=0),
    "SKA, blended filter": small("ska"),
    "linear attention": small("linear_attention"),
    "DeltaNet": small("delta_net"),
    "gated DeltaNet": dataclasses.replace(small("gated_delta_net"), changes=(spread_decays,)),
}
ALL = "all aids"
TAKEN: dict[str, tuple[Change, ...]] = {
    ALL: (),
    "keys not delayed": (no_delay,),
    "W_q started apart from W_k": (own_queries,),
    "no write gate": (no_gate,),
    "no norm of the read": (no_output_norm,),
    "no short convolution": (no_convolution,),
}


def trial(mixer: str, taken: str) -> Trial:
    """A mixer without one of the aids."""
    start = MIXERS[mixer]
    arm = dataclasses.replace(start, name=f"{mixer}, {taken}", changes=(*start.changes, *TAKEN[taken]))
    return Trial(NAME, arm, TASK, STEPS, BATCH_SIZE, RATES[2], QUESTIONS)


def comparison(quick: bool = False) -> Comparison:
    """The mixers with all aids."""
    trials = [trial(mixer, ALL) for mixer in MIXERS]
    full = Comparison(trials, RATES, QUESTIONS[:1])
    return full.at_recorded_rates(trials, study_files(NAME)[0]) if quick else full


def without(found: Results) -> list[Trial]:
    """Every mixer without each aid, at the rate that it has in `found`."""
    rates = {name.removesuffix(f", {ALL}"): records[0].figures["learning_rate"] for name, records in found.items()}
    return [
        trial(mixer, taken).with_(learning_rate=rates[mixer])
        for mixer in MIXERS
        if mixer in rates
        for taken in TAKEN
        if taken != ALL
    ]


def run(console: Console, *, seeds: int | None = None, quick: bool = False, device: str = "cpu") -> list[RunRecord]:
    """Run what is not recorded, print the table and draw the picture.

    `quick` takes one seed at the rates of the full records, in files of its own.
    """
    path, picture = study_files(NAME, quick)
    count = seed_count(seeds, 1 if quick else SEEDS)
    found = comparison(quick).on(device).run(console, count, path)
    results: Results = {**found, **run_seeds(console, without(found), count, path, device)}
    for question in QUESTIONS:
        print_rows(
            console, f"Accuracy, %, at {question.name} tokens, mean over seeds (range)", rows(results, question.name)
        )
    draw(results, picture)
    return [record for records in results.values() for record in records]


def recorded_results(path: Path) -> Results:
    """What is recorded of all mixers and aids."""
    found = comparison().recorded(path)
    others = {one.arm.name: recorded_seeds(one, path) for one in without(found)}
    return {**found, **{name: records for name, records in others.items() if records}}


def rows(results: Results, question: str) -> list[list[str]]:
    """A row for what was taken away, a column a mixer."""
    table = [["taken away", *MIXERS]]
    for taken in TAKEN:
        table.append([taken, *(cell(results.get(f"{mixer}, {taken}", ()), question) for mixer in MIXERS)])
    return table


def draw(results: Results, path: Path) -> None:
    """A grid of what was taken away by mixer, at the length of training and at ten times it."""
    figure = Figure(figsize=(11, 3.9), layout="constrained")
    for axes, question in zip(figure.subplots(1, 2, sharey=True), QUESTIONS, strict=True):
        grid = [
            [
                100 * mean_and_range(records, question.name)[0]
                if (records := results.get(f"{mixer}, {taken}"))
                else math.nan  # not recorded: left white
                for mixer in MIXERS
            ]
            for taken in TAKEN
        ]
        percent_grid(axes, grid)
        axes.set_xticks(
            range(len(MIXERS)), [name.replace(", ", ",\n").replace(" ", "\n", 1) for name in MIXERS], fontsize=9
        )
        axes.set_yticks(range(len(TAKEN)), list(TAKEN))
        axes.set_title(f"{TASK.pairs} pairs, {question.name} tokens: answers right, %", loc="left", fontsize=11)
    save(figure, path)
