"""filter-ablation (claim 4): what does the work, the power filter, the ridge or the mask?

Two tasks in 64 tokens, the same small model (Mamba-2, SKA, Mamba-2 of width 64) and budget for every variant:

- recall: eight pairs over a gap (`mqar-grid`), keys without dynamics. Filters K = 0 (plain ridge regression), 1, 2,
  4, and 2 blended with 0; times the ridge fixed at the paper's 1e-3 or learnt from 1; times no mask, or the mask of the
  pairs handed to SKA, which no other comparison of ours does.
- orbit: a walk over unseen states, asked where it stands s = 1, 2, 3, 4 steps after a state (`orbit`). The keys have
  dynamics, and a power of the operator composes steps. The filters, by s. Keys start delayed by one token, so that
  K = 0 reads one step after the match; if the filter is a look-ahead, K = s - 1 should be the one that learns.

Each variant runs at its best of four rates, three seeds. About 45 seconds a run on one core.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console

from echo_ska.experiments.trials.arms import small
from echo_ska.experiments.trials.changes import paper_ridge
from echo_ska.experiments.trials.comparison import Results, cell, table_rows
from echo_ska.experiments.trials.figures import percent_grid, save
from echo_ska.experiments.trials.studies import print_rows, seed_count, study_files
from echo_ska.experiments.trials.trial import Arm, Question, Trial
from echo_ska.experiments.trials.tuning import Comparison, mean_and_range
from echo_ska.tasks import MultiQueryRecallGrid, OrbitRecall
from echo_ska.training import RunRecord

NAME = "filter-ablation"
STEPS, BATCH_SIZE = 300, 64
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
SEEDS = 3

FILTERS: dict[str, dict[str, Any]] = {
    "K = 0": {"power": 0},
    "K = 1": {"power": 1, "blended": False},
    "K = 2": {"power": 2, "blended": False},
    "K = 4": {"power": 4, "blended": False},
    "K = 2 blended": {"power": 2, "blended": True},
}
ORBIT_FILTERS = {**FILTERS, "K = 3": {"power": 3, "blended": False}}
RIDGES = {"learnt": (), "1e-3": (paper_ridge,)}
MASKS = (False, True)
DISTANCES = (1, 2, 3, 4)

RECALL = MultiQueryRecallGrid()
RECALL_QUESTIONS = (
    Question("64", RECALL, 64, 1024),
    Question("1,024", RECALL, 1024, 64),
    Question("4,096", RECALL, 4096, 32),
)


def orbit_questions(task: OrbitRecall) -> tuple[Question, ...]:
    """The task at its own length and at 16 times it."""
    return (Question("64", task, 64, 1024), Question("1,024", task, 1024, 64))


def recall_arm(filter_name: str, ridge: str, masked: bool) -> Arm:
    """A variant on the recall task."""
    fields = {**small("ska").fields, **FILTERS[filter_name]}
    prefix = 2 * RECALL.pairs if masked else None
    return Arm(f"{filter_name}, ridge {ridge}{', mask' if masked else ''}", fields, RIDGES[ridge], prefix)


def recall_trials() -> list[Trial]:
    """Filters x ridges x masks."""
    return [
        Trial(NAME, recall_arm(name, ridge, masked), RECALL, STEPS, BATCH_SIZE, RATES[0], RECALL_QUESTIONS)
        for name in FILTERS
        for ridge in RIDGES
        for masked in MASKS
    ]


def orbit_trials(distance: int) -> list[Trial]:
    """The filters, asked `distance` steps along the walk."""
    task = OrbitRecall(steps=distance)
    return [
        Trial(
            NAME,
            Arm(f"{name}, {distance} steps", {**small("ska").fields, **ORBIT_FILTERS[name]}),
            task,
            STEPS,
            BATCH_SIZE,
            RATES[0],
            orbit_questions(task),
        )
        for name in sorted(ORBIT_FILTERS)
    ]


def run(console: Console, *, seeds: int | None = None, quick: bool = False, device: str = "cpu") -> list[RunRecord]:
    """Run what is not recorded, print the tables and draw the picture.

    `quick` takes one seed at the rates of the full records, no mask and distances 1 to 3, in files of its own.
    """
    path, picture = study_files(NAME, quick)
    count = seed_count(seeds, 1 if quick else SEEDS)
    recall = recall_comparison(quick).on(device).run(console, count, path)
    distances = DISTANCES[:3] if quick else DISTANCES
    orbit = {distance: orbit_comparison(distance, quick).on(device).run(console, count, path) for distance in distances}
    print_rows(console, "Recall: accuracy, %, mean over seeds (range)", recall_rows(recall))
    print_rows(console, "Orbit: accuracy, %, mean over seeds (range)", orbit_rows(orbit))
    draw(recall, orbit, picture)
    return [record for results in (recall, *orbit.values()) for records in results.values() for record in records]


def recall_comparison(quick: bool = False) -> Comparison:
    """Filters x ridges x masks on the recall task; `quick` hands out no mask."""
    full = Comparison(recall_trials(), RATES, RECALL_QUESTIONS[:1])
    unmasked = [trial for trial in full.trials if not trial.arm.written_prefix]
    return full.at_recorded_rates(unmasked, study_files(NAME)[0]) if quick else full


def orbit_comparison(distance: int, quick: bool = False) -> Comparison:
    """The filters on orbits of one distance."""
    trials = orbit_trials(distance)
    full = Comparison(trials, RATES, trials[0].questions[:1])
    return full.at_recorded_rates(trials, study_files(NAME)[0]) if quick else full


def recall_rows(results: Results) -> list[list[str]]:
    """Accuracy by variant and length."""
    return table_rows(results, {question.name: f"at {question.name}" for question in RECALL_QUESTIONS}, first="variant")


def orbit_rows(results: Mapping[int, Results], question: str = "64") -> list[list[str]]:
    """Accuracy by filter and distance."""
    table = [["filter", *(f"{distance} step{'s' * (distance > 1)}" for distance in results)]]
    for name in sorted(ORBIT_FILTERS):
        cells = []
        for distance, of_distance in results.items():
            cells.append(cell(of_distance[f"{name}, {distance} steps"], question))
        table.append([name, *cells])
    return table


def draw(recall: Results, orbit: Mapping[int, Results], path: Path) -> None:
    """Recall at the longest length as bars, orbits as a grid of filter and distance."""
    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    _draw_recall(left, recall)
    _draw_orbit(right, orbit)
    save(figure, path)


_COLOURS = {
    ("learnt", False): "#0072B2",
    ("learnt", True): "#9CC8E6",
    ("1e-3", False): "#D55E00",
    ("1e-3", True): "#F5B58A",
}


def _draw_recall(axes: Axes, results: Results) -> None:
    question = RECALL_QUESTIONS[-1].name
    shown = [
        (ridge, masked) for ridge in RIDGES for masked in MASKS if recall_arm("K = 0", ridge, masked).name in results
    ]
    width = 0.8 / len(shown)
    for place, (ridge, masked) in enumerate(shown):
        values = [
            [100 * record.figures["accuracy"][question] for record in results[recall_arm(name, ridge, masked).name]]
            for name in FILTERS
        ]
        at = [n + (place - (len(shown) - 1) / 2) * width for n in range(len(FILTERS))]
        label = f"ridge {ridge}" + (", mask handed over" if masked else "")
        axes.bar(at, [fmean(v) for v in values], 0.92 * width, color=_COLOURS[ridge, masked], label=label)
        axes.vlines(at, [min(v) for v in values], [max(v) for v in values], color="black", linewidth=1.2)
    axes.axhline(100 * RECALL.chance, color="#999999", linewidth=1)
    axes.annotate(
        "chance",
        (1, 100 * RECALL.chance),
        xycoords=("axes fraction", "data"),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        fontsize=9,
    )
    axes.set_xticks(range(len(FILTERS)), list(FILTERS))
    axes.tick_params(axis="x", length=0)
    axes.set_ylim(0, 100)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"Recall of eight pairs at {question} tokens, trained at 64, %", loc="left", fontsize=11, pad=36)
    axes.legend(frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1.0), fontsize=9)


def _draw_orbit(axes: Axes, results: Mapping[int, Results]) -> None:
    names = sorted(ORBIT_FILTERS)
    grid = [
        [
            100 * mean_and_range(of_distance[f"{name}, {distance} steps"], "64")[0]
            for distance, of_distance in results.items()
        ]
        for name in names
    ]
    percent_grid(axes, grid)
    axes.set_xticks(range(len(results)), [str(distance) for distance in results])
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("steps from the state asked for to the answer")
    axes.set_title("Orbits: answers right, %, mean over seeds", loc="left", fontsize=11)
