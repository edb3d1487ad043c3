"""trained-precision: do trained models still recall if the numbers of their state are rounded as they read?

`state-precision` asks that of untrained memories. Here SKA (plain ridge, and the blended filter) and DeltaNet, in the
middle of the small model, are trained as ever on 16 pairs in 96 tokens, as many pairs as a head has ranks. Then they
are asked at 96 and at 4,096 tokens in segments of 32, after each of which what the middle layer has stored is rounded
to a precision: SKA's three moments or DeltaNet's memory. (The convolutions' last inputs and Mamba-2's states stay as
they are.) Nothing is trained again, and no rank grows: this is what each precision costs, `state-precision` what its
bytes buy. One rate, 1e-2; three seeds; three to eight minutes a run on one core.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor, nn

from echo_ska.evaluation.recall import recall_accuracy
from echo_ska.experiments.algebra.state_precision import PRECISIONS, Precision
from echo_ska.experiments.algebra.state_precision_report import COLOURS
from echo_ska.experiments.trials.arms import small
from echo_ska.experiments.trials.comparison import Results, percent_range
from echo_ska.experiments.trials.figures import save
from echo_ska.experiments.trials.studies import print_rows, seed_count, study_files
from echo_ska.experiments.trials.trial import Question, Trial
from echo_ska.experiments.trials.tuning import recorded_seeds, run_seeds
from echo_ska.models import EchoForCausalLM
from echo_ska.nn.mixer import MixerState
from echo_ska.nn.peers.base import LinearState
from echo_ska.nn.ska import SpectralKoopmanState
from echo_ska.ops import RecurrentState
from echo_ska.tasks import MultiQueryRecallGrid
from echo_ska.training import RunRecord

NAME = "trained-precision"
TASK = MultiQueryRecallGrid(pairs=16, gap=32)
STEPS, BATCH_SIZE, RATE = 250, 32, 1e-2
SEEDS = 3
SEGMENT = 32
"""Tokens after which what is stored is rounded."""
QUESTIONS = (Question("96", TASK, 96, 512), Question("4,096", TASK, 4096, 64))
ARMS = (small("ska", "SKA, plain ridge", power=0), small("ska", "SKA, blended filter"), small("delta_net", "DeltaNet"))


class Rounding(nn.Module):
    """A network whose middle layer stores in a precision what it hands on from call to call."""

    def __init__(self, network: EchoForCausalLM, precision: Precision) -> None:
        super().__init__()
        self.network, self.precision = network, precision

    def forward(self, **arguments: Any) -> Any:
        """The network's output; its cache is rounded in place."""
        output = self.network(**arguments)
        if output.past_key_values is not None:
            for layer in output.past_key_values.layers:
                layer.state = rounded_state(layer.state, self.precision)
        return output


def rounded_state(state: MixerState, precision: Precision) -> MixerState:
    """SKA's moments and DeltaNet's memory as they are after they were stored; other states as they are."""

    def stored(matrix: Tensor) -> Tensor:
        return precision.rounded(matrix.double()).to(matrix.dtype)

    if isinstance(state, LinearState):
        return dataclasses.replace(state, memory=stored(state.memory))
    if not isinstance(state, SpectralKoopmanState):
        return state
    recurrent = state.compact().recurrent
    assert isinstance(recurrent, RecurrentState)
    sums = recurrent.statistics
    upper = stored(sums.gram.triu())
    rounded = dataclasses.replace(
        sums,
        gram=upper + upper.triu(1).mT,
        lag_moment=stored(sums.lag_moment),
        value_moment=stored(sums.value_moment),
    )
    return dataclasses.replace(state, recurrent=dataclasses.replace(recurrent, statistics=rounded))


@torch.no_grad()
def rounded_recall(network: EchoForCausalLM, trial: Trial) -> dict[str, Any]:
    """`rounded`: by precision and question the share of right answers, 0 where rounding left no factor."""
    found: dict[str, dict[str, float]] = {}
    for name, precision in PRECISIONS.items():
        found[name] = {}
        for asked in trial.questions:
            try:
                right = recall_accuracy(
                    Rounding(network, precision), asked.task, asked.length, asked.sequences, asked.seed, SEGMENT
                )
            except ArithmeticError:
                right = 0.0
            found[name][asked.name] = right
    return {"rounded": found}


def trials() -> list[Trial]:
    """A trial an arm."""
    return [Trial(NAME, arm, TASK, STEPS, BATCH_SIZE, RATE, QUESTIONS, measure=rounded_recall) for arm in ARMS]


def run(console: Console, *, seeds: int | None = None, quick: bool = False, device: str = "cpu") -> list[RunRecord]:
    """Run what is not recorded, print the table and draw the picture. `quick` takes one seed, in files of its own."""
    path, picture = study_files(NAME, quick)
    results = run_seeds(console, trials(), seed_count(seeds, 1 if quick else SEEDS), path, device)
    print_rows(console, f"Right answers, %, rounded after every {SEGMENT} tokens", rows(results))
    draw(results, picture)
    return [record for records in results.values() for record in records]


def recorded_results(path: Path) -> Results:
    """What is recorded, by arm."""
    return {trial.arm.name: records for trial in trials() if (records := recorded_seeds(trial, path))}


def shares(results: Results, arm: str, precision: str, question: str) -> list[float]:
    """The share of right answers, a seed each; none of a training that diverged."""
    return [r.figures["rounded"][precision][question] for r in results[arm] if "rounded" in r.figures]


def rows(results: Results) -> list[list[str]]:
    """A row an arm and length: as it is, and in every precision."""
    table = [["model", "tokens", "as it is", *PRECISIONS]]
    for arm, records in results.items():
        for question in QUESTIONS:
            as_it_is = percent_range([record.figures["accuracy"][question.name] for record in records])
            found = [shares(results, arm, precision, question.name) for precision in PRECISIONS]
            table.append([arm, question.name, as_it_is, *(percent_range(each) if each else "" for each in found)])
    return table


def draw(results: Results, path: Path) -> None:
    """A panel a length: groups of bars by model, a bar a precision, a line over the range of seeds."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, len(QUESTIONS), sharey=True)
    width = 0.8 / len(PRECISIONS)
    for axes, question in zip(panels, QUESTIONS, strict=True):
        for place, precision in enumerate(PRECISIONS):
            at = [n + (place - (len(PRECISIONS) - 1) / 2) * width for n in range(len(results))]
            found = [[100 * share for share in shares(results, arm, precision, question.name)] for arm in results]
            heights = [fmean(values) if values else 0.0 for values in found]
            axes.bar(at, heights, 0.92 * width, color=COLOURS[precision], label=precision)
            axes.vlines(at, [min(v, default=0) for v in found], [max(v, default=0) for v in found], color="#999999")
        axes.set_xticks(range(len(results)), [name.replace(", ", ",\n") for name in results])
        axes.tick_params(axis="x", length=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(f"{question.name} tokens", loc="left", fontsize=11)
    panels[0].set_ylim(0, 100)
    panels[0].set_ylabel("right answers, %")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=len(labels), frameon=False, fontsize=9)
    save(figure, path)
