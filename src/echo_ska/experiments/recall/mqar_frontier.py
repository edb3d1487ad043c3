"""mqar-frontier: accuracy on Zoology's recall task against the bytes of state it takes, SKA beside all of its peers.

Zoology's protocol (Arora et al., arXiv 2312.04927, and their repository), reduced for two CPU cores and the same for
all: two layers of short convolution and mixer without feed-forward layers; trained on many short sequences and few long
ones, tested on more pairs and lengths than were trained, mean over the test cells. Reduced are the vocabulary (512
instead of 8,192), the lengths (64 and 128 tokens in training instead of 64 to 256, 64 to 512 in the test instead of 64
to 1,024), the pairs (up to 32 in training instead of 64, 128 in the test instead of 256), the width (64) and above all
the training: 3 million tokens a run instead of 778 million. So the figures here compare models with one another, not
with the published ones.

Every model has the largest rank (or state size) that keeps its state within 4, 8 or 16 kB: float32, both layers, a
symmetric matrix as a triangle, and of SKA what its power needs: no lag moment at power 0. Not counted are the tails of
short convolutions (Zoology's rule), Mamba-3's last token, which stands in for one, and whole numbers. Every arm is
tried at the same three rates with half the steps, then three seeds at its best.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console

from echo_ska.experiments.trials.changes import Change, even_mamba_aids, gate_starts_low, spread_decays
from echo_ska.experiments.trials.comparison import Results, percent_range, with_count
from echo_ska.experiments.trials.figures import label_lines, percent, save, short_bytes
from echo_ska.experiments.trials.studies import print_rows, seed_count, study_files
from echo_ska.experiments.trials.trial import Arm, Question, Trial, config_of
from echo_ska.experiments.trials.tuning import Comparison
from echo_ska.models import EchoConfig
from echo_ska.models.presets import build_on_meta
from echo_ska.nn import SequenceMixer, SpectralKoopmanAttention
from echo_ska.nn.peers.mesa_net import MesaNet
from echo_ska.tasks import MultiQueryRecall
from echo_ska.training import RunRecord

NAME = "mqar-frontier"
VOCAB_SIZE = 512
WIDTH, LAYERS = 64, 2
BUDGETS = (4096, 8192, 16_384)
STEPS, TUNING_STEPS = 1500, 750
RATES = (2e-3, 6e-3, 2e-2)
SEEDS = 3
CLOSE = 70
"""%: where the right half of the picture begins."""
FLOAT = 4
"""Bytes of a number as it is counted, whatever it is stored in: SKA's sums are float64, its peers' memories float32."""


def _task(length: int, pairs: int) -> MultiQueryRecall:
    return MultiQueryRecall(vocab_size=VOCAB_SIZE, length=length, pairs=pairs)


SCHEDULE = (
    (_task(64, 4), 32, 0.56),
    (_task(64, 8), 32, 0.11),
    (_task(128, 16), 16, 0.22),
    (_task(128, 32), 16, 0.44),
)
"""(task, batch size, weight); 2,048 tokens a step. Weights are of steps: those of the tasks of 128 tokens, whose
batches hold half as many sequences, are doubled, so that 56, 11, 11 and 22 % of the sequences are of each, as in
Zoology."""

CELLS = ((64, 4), (64, 8), (64, 16), (128, 32), (256, 64), (512, 128))
QUESTIONS = tuple(
    Question(f"{length}, {pairs}", _task(length, pairs), length, max(32, 4096 // pairs)) for length, pairs in CELLS
)
TUNED_ON = tuple(
    Question(f"{task.length}, {task.pairs}", task, task.length, max(16, 2048 // task.pairs)) for task, _, _ in SCHEDULE
)


@dataclass(frozen=True)
class Family:
    """A kind of model, whose state grows with one field of its configuration.

    Attributes:
        mixer: the name in `layer_types`.
        grows: the field, a whole number.
        fields: the others.
        colour: of its line; a shape of a mixer that is in another line too is dashed or dotted.
        changes: of the built network.
    """

    mixer: str
    grows: str
    colour: str
    fields: tuple[tuple[str, Any], ...] = ()
    changes: tuple[Change, ...] = ()
    dashes: str = "-"

    def config(self, size: int) -> dict[str, Any]:
        """Fields of `EchoConfig` at a size."""
        fields = {
            "hidden_size": WIDTH,
            "num_hidden_layers": LAYERS,
            "layer_types": [self.mixer] * LAYERS,
            "ska_at_ends": True,
            "feed_forward": "none",
            "num_heads": 2,
            **dict(self.fields),
        }
        return {**fields, self.grows: size}


_ONE_WIDE = (("num_heads", 1),)
FAMILIES = {
    "ska, power 0": Family("ska", "rank", "#0072B2", (("power", 0),)),
    "ska, power 0, one wide head": Family("ska", "rank", "#0072B2", (("power", 0), *_ONE_WIDE), dashes="--"),
    "ska, power 2 blended": Family("ska", "rank", "#56B4E9"),
    "linear attention": Family("linear_attention", "rank", "#8A8A8A"),
    "linear attention, one wide head": Family("linear_attention", "rank", "#8A8A8A", _ONE_WIDE, dashes="--"),
    "delta net": Family("delta_net", "rank", "#E69F00"),
    "delta net, one wide head": Family("delta_net", "rank", "#E69F00", _ONE_WIDE, dashes="--"),
    "delta net, gate from 0.1": Family("delta_net", "rank", "#E69F00", changes=(gate_starts_low,), dashes=":"),
    "gated delta net": Family("gated_delta_net", "rank", "#D55E00", changes=(spread_decays,)),
    "gated delta net, one wide head": Family(
        "gated_delta_net", "rank", "#D55E00", _ONE_WIDE, (spread_decays,), dashes="--"
    ),
    "gla": Family("gla", "rank", "#CC79A7"),
    "rwkv-7": Family("rwkv7", "rank", "#8C564B"),
    "mesa net": Family("mesa_net", "rank", "#009E73", changes=(spread_decays,)),
    "mesa net, one wide head": Family("mesa_net", "rank", "#009E73", _ONE_WIDE, (spread_decays,), dashes="--"),
    "sliding attention": Family("sliding_attention", "sliding_window", "#7A5195"),
    "based": Family("based", "rank", "#A39100"),
    "mamba-2": Family("mamba2", "state_size", "#333333", changes=(even_mamba_aids,)),
    "mamba-2, as published": Family("mamba2", "state_size", "#333333", dashes="--"),
    "mamba-3": Family("mamba3", "state_size", "#B2182B"),
}


def counted_bytes(config: EchoConfig) -> int:
    """Bytes of a model's state by the rule above."""
    return FLOAT * sum(_numbers(mixer) for mixer in build_on_meta(config).model.mixers)


_NOT_COUNTED = ("convolution", "previous_")
"""Tensors of a state that hold the last tokens, for a short convolution and for Mamba-3's rule of two points."""


def _numbers(mixer: SequenceMixer) -> int:
    if isinstance(mixer, SpectralKoopmanAttention):
        rank, width = mixer.rank, mixer.head_dim
        lag = rank * rank + rank if mixer.power > 0 else 0  # with the previous key, its other half
        return mixer.num_heads * (rank * (rank + 1) // 2 + width * rank + lag)
    tensors = mixer.init_state(1, device="meta").tensors()
    counted = {name: tensor for name, tensor in tensors.items() if not name.startswith(_NOT_COUNTED)}
    numbers = sum(tensor.numel() for tensor in counted.values() if tensor.is_floating_point())
    if isinstance(mixer, MesaNet):  # its Gram matrix is symmetric, and stored whole
        heads, _, rank = tensors["memory"].shape[1:]
        numbers -= heads * (rank * (rank - 1) // 2)
    return numbers


@functools.cache
def largest_within(family: Family, budget: int, unneeded: Callable[[int], int] = lambda _: 0) -> int | None:
    """The largest size of a family whose state is within so many bytes; None where even the smallest is not.

    `unneeded` says how many of the counted bytes a change of the network makes needless, by size.
    """
    best = None
    for size in range(1, budget):
        try:
            found = counted_bytes(EchoConfig(vocab_size=VOCAB_SIZE, **family.config(size))) - unneeded(size)
        except ValueError:  # a size that the mixer does not take, such as an odd number of channels to rotate
            continue
        if found > budget:
            break
        best = size
    return best


def arm_name(family: str, budget: int) -> str:
    """What the model of a family within a budget is called."""
    return f"{family}, {budget // 1024} kB"


def arms(budgets: Sequence[int]) -> list[Arm]:
    """The largest model of every family within every budget; and softmax attention, whose state grows."""
    found = []
    for name, family in FAMILIES.items():
        for budget in budgets:
            if (size := largest_within(family, budget)) is not None:
                found.append(Arm(arm_name(name, budget), family.config(size), family.changes))
    return [*found, Arm("softmax attention", Family("full_attention", "rank", "black").config(16))]


def trials(quick: bool = False) -> list[Trial]:
    """A trial an arm."""
    budgets = BUDGETS[1:2] if quick else BUDGETS
    steps = STEPS // 3 if quick else STEPS
    return [
        Trial(NAME, each, SCHEDULE[0][0], steps, 32, RATES[1], QUESTIONS, schedule=SCHEDULE) for each in arms(budgets)
    ]


def comparison(quick: bool = False) -> Comparison:
    """What is run."""
    full = Comparison(trials(), RATES, TUNED_ON, TUNING_STEPS)
    return full.at_recorded_rates(trials(quick), study_files(NAME)[0]) if quick else full


def run(console: Console, *, seeds: int | None = None, quick: bool = False, device: str = "cpu") -> list[RunRecord]:
    """Run what is not recorded, print the table and draw the picture.

    `quick` takes one seed, 8 kB, a third of the steps and the rates of the full records, in files of its own.
    """
    path, picture = study_files(NAME, quick)
    results = comparison(quick).on(device).run(console, seed_count(seeds, 1 if quick else SEEDS), path)
    print_rows(console, "Accuracy, %, mean over seeds, by length and pairs", rows(results))
    draw(results, picture)
    return [record for records in results.values() for record in records]


def state_bytes(record: RunRecord) -> int:
    """The counted bytes of a record's model; of softmax attention at the longest test."""
    config = config_of(record)
    if "full_attention" in config.layer_types:
        return FLOAT * 2 * LAYERS * config.num_heads * int(config.head_dim or 0) * CELLS[-1][0]
    return counted_bytes(config)


def mean_accuracy(record: RunRecord) -> float:
    """A record's mean over the test cells."""
    return fmean(record.figures["accuracy"].values())


def rows(results: Results) -> list[list[str]]:
    """A row an arm: its bytes, its mean over cells with the range of its seeds, and every cell."""
    table = [["model", "state", "rate", "mean", *(question.name for question in QUESTIONS)]]
    for name, records in results.items():
        means = [mean_accuracy(record) for record in records]
        cells = [percent(fmean(r.figures["accuracy"][question.name] for r in records)) for question in QUESTIONS]
        rate = f"{records[0].figures['learning_rate']:g}"
        table.append(
            [with_count(name, results), short_bytes(state_bytes(records[0])), rate, percent_range(means), *cells]
        )
    return table


def draw(results: Results, path: Path) -> None:
    """Mean accuracy against bytes of state: a line a family, a band over seeds; all, and the best of them larger."""
    figure = Figure(figsize=(12.5, 5.2), layout="constrained")
    whole, close = figure.subplots(1, 2, width_ratios=(2, 3))
    ends = {}
    for family, settings in FAMILIES.items():
        found = [records for budget in BUDGETS if (records := results.get(arm_name(family, budget)))]
        if not found:
            continue
        at = [state_bytes(records[0]) for records in found]
        means = [[100 * mean_accuracy(record) for record in records] for records in found]
        line = [fmean(values) for values in means]
        weight = 2.6 if settings.mixer == "ska" else 1.4
        look: dict[str, Any] = {"color": settings.colour, "linestyle": settings.dashes, "linewidth": weight}
        for axes in (whole, close):
            axes.fill_between(at, [min(v) for v in means], [max(v) for v in means], color=settings.colour, alpha=0.12)
            axes.plot(at, line, marker="o", markersize=4, **look)
        ends[family] = (BUDGETS[-1], line[-1])
    softmax = results.get("softmax attention")
    best = fmean(100 * mean_accuracy(record) for record in softmax) if softmax else 100.0
    if softmax:
        note = f"softmax attention, {short_bytes(state_bytes(softmax[0]))} at the longest"
        for axes in (whole, close):
            axes.axhline(best, color="black", linewidth=1, linestyle=(0, (4, 3)))
        close.annotate(note, (BUDGETS[0], best), xytext=(0, 4), textcoords="offset points", fontsize=9)
    for axes in (whole, close):
        axes.set_xscale("log", base=2)
        axes.set_xticks(BUDGETS, [short_bytes(budget) for budget in BUDGETS])
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)
    whole.set_ylim(0, 102)
    close.set_ylim(CLOSE, best + 2)
    figure.supxlabel("state, both layers: 4 bytes a number, short convolutions not counted", fontsize=10)
    whole.set_title("Zoology's MQAR, reduced: mean over the test cells, %", loc="left", fontsize=11)
    close.set_title(f"from {CLOSE} % on", loc="left", fontsize=11)
    figure.draw_without_rendering()  # settles the axes' places, which the labels need
    colours = {family: settings.colour for family, settings in FAMILIES.items()}
    label_lines(whole, {family: end for family, end in ends.items() if end[1] < CLOSE + 10}, colours)
    label_lines(close, {family: end for family, end in ends.items() if end[1] >= CLOSE + 10}, colours)
    save(figure, path)
