"""transfer (claim 3): trained on system prompts and tool traces, asked those, four other tasks, and two of our own.

A curriculum of system prompts (easy and hard gaps; half of the facts name another key instead of a value, or no model
would ever have written a key) and tool traces in equal parts, 6,000 steps of 16 sequences, models of the size of
echo-1m with equal parameters, each at its best of the same rates, three seeds. Two changes of the training: SSM+SKA
with gate dropout, since its write gate may learn where the curriculum's pairs stand, and attention has no such part;
and all three with stochastic depth, where half of the sequences go past the first Mamba-2 mixer, so that the layers
above must know a cue without what that one mixed into it, at the rate that suits SSM+SKA and attention best. Then,
with no further training, the paper's six: new system prompts and new tool traces, which are the curriculum's own
tasks, and multi-query recall, needles, two hops with the key on the way written out, and the common word. And two that
the paper does not have: the end of two hops, nothing written out, and inverse matching (chance 20 %). Half an hour
to an hour a run on one core.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure
from rich.console import Console

from echo_ska.experiments.trials import figures
from echo_ska.experiments.trials.arms import ECHO, IN_PLACE_OF_SKA, million_arms, small_arms
from echo_ska.experiments.trials.comparison import Results, percent_range, table_rows, with_count
from echo_ska.experiments.trials.figures import save
from echo_ska.experiments.trials.studies import print_rows, seed_count, study_files
from echo_ska.experiments.trials.trial import Arm, Question, Trial
from echo_ska.experiments.trials.tuning import Comparison
from echo_ska.tasks import (
    CommonWord,
    InverseMatching,
    MultiHop,
    MultiQueryRecallGrid,
    Needle,
    RecallMixture,
    RecallTask,
    SystemPrompt,
    ToolTrace,
)
from echo_ska.training import RunRecord

NAME = "transfer"
TASK = RecallMixture(
    (
        (SystemPrompt(gaps="easy", references=4), 1.0),
        (SystemPrompt(gaps="hard", references=4), 1.0),
        (ToolTrace(), 2.0),
    )
)
STEPS, QUICK_STEPS, BATCH_SIZE = 6000, 1000, 16
RATES = (1e-3, 3e-3, 1e-2)
GATE_DROPOUT = 0.2
WITH_DROPOUT = f"{ECHO}, gate dropout"
DEPTH_DROPOUT = 0.5
WITH_DEPTH = {arm: f"{arm}, stochastic depth" for arm in IN_PLACE_OF_SKA}
COLOURS = {
    **figures.COLOURS,
    WITH_DROPOUT: "#CC79A7",
    **dict(zip(WITH_DEPTH.values(), ("#BBBBBB", "#F0B48A", "#7FB8D9"), strict=True)),
}
TUNING_STEPS = 1500
SEEDS = 3
SEQUENCES = 512

TASKS: dict[str, RecallTask] = {
    "mqar": MultiQueryRecallGrid(vocab_size=120),  # fillers of the curriculum's alphabet
    "system prompt": SystemPrompt(),
    "tool trace": ToolTrace(),
    "needle": Needle(),
    "multi-hop": MultiHop(written=True),
    "common word": CommonWord(),
}
"""The paper's six; the mean is over these."""
TRAINED_ON = ("system prompt", "tool trace")
"""Those of the six that the curriculum is made of."""
FURTHER: dict[str, RecallTask] = {"end of two hops": MultiHop(), "inverse matching": InverseMatching()}
"""Which the paper does not have: the end of a chain, the key on the way not written out; and the reverse direction."""

PAPER = {
    "ssm": (55.1, 64.2, 56.5, 52.0, 39.3, 52.9),
    "ssm+attention": (76.0, 81.3, 76.2, 81.1, 71.1, 68.2),
    "ssm+ska": (82.2, 85.3, 80.5, 84.2, 76.7, 74.1),
}
"""The paper's figures, %, in the order of `TASKS` (arXiv 2605.06997)."""

QUESTIONS = tuple(Question(name, task, task.length, SEQUENCES) for name, task in (TASKS | FURTHER).items())
TUNED_ON = (Question("curriculum", TASK, TASK.length, 512),)


def trials(quick: bool = False) -> list[Trial]:
    """A trial an arm; `quick` takes the small models and fewer steps."""
    arms = (small_arms if quick else million_arms)(TASK.vocab_size)
    steps = QUICK_STEPS if quick else STEPS
    return [Trial(NAME, arm, TASK, steps, BATCH_SIZE, RATES[1], QUESTIONS) for arm in arms]


def run(console: Console, *, seeds: int | None = None, quick: bool = False, device: str = "cpu") -> list[RunRecord]:
    """Run what is not recorded, print the table and draw the picture.

    `quick` takes one seed of the small models for 1,000 steps at the rates of the full records, in files of its own.
    """
    path, picture = study_files(NAME, quick)
    count = seed_count(seeds, 1 if quick else SEEDS)
    results = comparison(quick).on(device).run(console, count, path)
    results |= dropout_comparison(quick).on(device).run(console, count, path)
    results |= depth_comparison(quick).on(device).run(console, count, path)
    steps = QUICK_STEPS if quick else STEPS
    print_rows(console, f"Accuracy, %, after {steps:,} steps on system prompts and tool traces", rows(results))
    draw(results, picture)
    return [record for records in results.values() for record in records]


def comparison(quick: bool = False) -> Comparison:
    """What is run."""
    full = Comparison(trials(), RATES, TUNED_ON, TUNING_STEPS)
    return full.at_recorded_rates(trials(quick), study_files(NAME)[0]) if quick else full


def dropout_comparison(quick: bool = False) -> Comparison:
    """The same for SSM+SKA with gate dropout."""
    full = Comparison([_with_dropout(trials())], RATES, TUNED_ON, TUNING_STEPS)
    return full.at_recorded_rates([_with_dropout(trials(quick))], study_files(NAME)[0]) if quick else full


def depth_comparison(quick: bool = False) -> Comparison:
    """The three models with stochastic depth, each at the middle rate."""
    return Comparison([_with_depth(trial) for trial in trials(quick)], (), ())


def _with_dropout(of_arms: Sequence[Trial]) -> Trial:
    echo = next(trial for trial in of_arms if trial.arm.name == ECHO)
    return echo.with_(arm=echo.arm.changed(WITH_DROPOUT, gate_dropout=GATE_DROPOUT))


def _with_depth(trial: Trial) -> Trial:
    return trial.with_(arm=with_depth(trial.arm))


def with_depth(arm: Arm) -> Arm:
    """A model whose training sends half of the sequences past the first mixer."""
    above = len(arm.fields["layer_types"]) - 1
    return arm.changed(WITH_DEPTH[arm.name], mixer_dropout=[DEPTH_DROPOUT, *[0.0] * above])


def recorded_results(path: Path) -> Results:
    """What is recorded of all arms."""
    comparisons = (comparison(), dropout_comparison(), depth_comparison())
    return {arm: records for each in comparisons for arm, records in each.recorded(path).items()}


def mean_over_tasks(record: RunRecord) -> float:
    """A record's mean accuracy over the paper's six tasks."""
    return fmean(record.figures["accuracy"][name] for name in TASKS)


def mean_beyond(record: RunRecord) -> float:
    """A record's mean accuracy over the four of them that training never asked."""
    return fmean(record.figures["accuracy"][name] for name in TASKS if name not in TRAINED_ON)


def rows(results: Results) -> list[list[str]]:
    """Accuracy by arm and task, the mean over the six and over the four not trained on; the paper's own below."""
    table = table_rows(results, {name: name for name in (TASKS | FURTHER)})
    place = 1 + len(TASKS)
    table[0][place:place] = ["mean of six", "of the four not trained on"]
    for row, records in zip(table[1:], results.values(), strict=True):
        row[place:place] = [percent_range([mean(r) for r in records]) for mean in (mean_over_tasks, mean_beyond)]
    for arm, published in PAPER.items():
        beyond = [value for name, value in zip(TASKS, published, strict=True) if name not in TRAINED_ON]
        cells = [f"{value:.1f}" for value in (*published, fmean(published), fmean(beyond))]
        table.append([f"paper: {arm}", *cells, *[""] * len(FURTHER)])
    return table


def draw(results: Results, path: Path) -> None:
    """A bar an arm for every task: the mean over seeds, a line over their range, the paper's figure as a notch."""
    draw_bars(results, TASKS | FURTHER, COLOURS, path, PAPER)


def draw_bars(
    results: Results,
    tasks: Mapping[str, RecallTask],
    colours: Mapping[str, str],
    path: Path,
    published: Mapping[str, Sequence[float]] | None = None,
) -> None:
    """A bar an arm for every task: the mean over seeds, a line over their range, a published figure as a notch.

    Args:
        results: what is drawn.
        tasks: by the question's name, for chance.
        colours: by arm.
        path: the PNG.
        published: by arm, %, in the order of the tasks.
    """
    names = list(tasks)
    figure = Figure(figsize=(9.5, 4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(results)
    for place, (arm, records) in enumerate(results.items()):
        at = [n + (place - (len(results) - 1) / 2) * width for n in range(len(names))]
        values = [[100 * record.figures["accuracy"][name] for record in records] for name in names]
        axes.bar(at, [fmean(v) for v in values], 0.92 * width, color=colours[arm], label=with_count(arm, results))
        axes.vlines(at, [min(v) for v in values], [max(v) for v in values], color="black", linewidth=1.2)
        for x, figure_of_paper in zip(at, (published or {}).get(arm, ()), strict=False):
            axes.hlines(figure_of_paper, x - width / 2, x + width / 2, color="black", linewidth=1.2, linestyle=":")
    if published:
        axes.hlines([], 0, 0, color="black", linewidth=1.2, linestyle=":", label="the paper's figure")
    for n, task in enumerate(tasks.values()):
        axes.hlines(100 * task.chance, n - 0.45, n + 0.45, color="#999999", linewidth=1, label="" if n else "chance")
    axes.set_xticks(range(len(names)), [name.replace(" ", "\n", 1) for name in names])
    axes.tick_params(axis="x", length=0)
    axes.set_ylim(0, 100)
    axes.spines[["top", "right"]].set_visible(False)
    named = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    arms = [with_count(arm, results) for arm in results]
    in_order = sorted(named, key=lambda label: label not in arms)  # arms, then lines
    handles = [named[label] for label in in_order]
    axes.legend(handles, in_order, frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1.0), fontsize=9)
    axes.set_ylabel("answers right, %")
    save(figure, path)
