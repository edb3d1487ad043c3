"""recall-per-byte: what raises SKA's recall without a byte more of state? One change at a time.

The task, the training, the way of counting and the tuning are `mqar-frontier`'s, at 8 kB of state. The start is
plain ridge regression with two heads a layer; a change that takes bytes has to find them in its rank. A change belongs
in the recipe if it gains two points or more and its seeds lie above those of the start, all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from echo_ska.experiments.recall import mqar_frontier
from echo_ska.experiments.recall.mqar_frontier import Family, largest_within, mean_accuracy
from echo_ska.experiments.trials.changes import (
    Change,
    fast_ridge,
    half_delay,
    half_hebbian,
    high_ridge,
    low_ridge,
    no_delay,
    own_queries,
    products,
)
from echo_ska.experiments.trials.comparison import Results
from echo_ska.experiments.trials.figures import draw_gains, short_bytes
from echo_ska.experiments.trials.studies import print_rows, seed_count, study_files
from echo_ska.experiments.trials.trial import Arm, Trial
from echo_ska.experiments.trials.tuning import Comparison
from echo_ska.training import RunRecord

NAME = "recall-per-byte"
BUDGET = 8192
START = "the start"
COLOUR = "#0072B2"

Fields = Mapping[str, Any]
ONE_HEBBIAN = "one head of the two Hebbian"
VARIANTS: dict[str, tuple[Fields, tuple[Change, ...]]] = {
    START: ({}, ()),
    "one wide head": ({"num_heads": 1}, ()),
    "four heads": ({"num_heads": 4}, ()),
    "keys of one head of the two not delayed": ({}, (half_delay,)),
    ONE_HEBBIAN: ({}, (half_hebbian,)),
    "values twice as wide": ({"head_dim": mqar_frontier.WIDTH}, ()),
    "look-ahead: power 1, keys not delayed": ({"power": 1, "blended": False}, (no_delay,)),
    "first layer Hebbian": ({"layer_types": ("linear_attention", "ska")}, ()),
    "last layer Hebbian": ({"layer_types": ("ska", "linear_attention")}, ()),
    "ridge learns ten times faster": ({}, (fast_ridge,)),
    "ridge starts at 0.1": ({}, (low_ridge,)),
    "ridge starts at 10": ({}, (high_ridge,)),
    "products of two coordinates as keys": ({}, (products,)),
    "W_q started apart from W_k": ({}, (own_queries,)),
}
"""What differs from the start: fields of the configuration, and changes to the built network."""


def hebbian_gram_bytes(rank: int) -> int:
    """Bytes of the Gram matrices that one head a layer does not need where it is Hebbian."""
    return mqar_frontier.FLOAT * mqar_frontier.LAYERS * rank * (rank + 1) // 2


def _nothing(_: int) -> int:
    return 0


def arms() -> list[Arm]:
    """The largest model of every variant within the budget."""
    found = []
    for name, (fields, changes) in VARIANTS.items():
        family = Family("ska", "rank", COLOUR, tuple({"power": 0, **fields}.items()))
        size = largest_within(family, BUDGET, hebbian_gram_bytes if name == ONE_HEBBIAN else _nothing)
        assert size is not None, f"{name} has no model within {BUDGET} bytes"
        found.append(Arm(name, family.config(size), changes))
    return found


def trials(quick: bool = False) -> list[Trial]:
    """A trial a variant, as `mqar_frontier` has them."""
    pattern = mqar_frontier.trials(quick)[0]
    return [pattern.with_(experiment=NAME, arm=arm) for arm in arms()]


def comparison(quick: bool = False) -> Comparison:
    """What is run; `quick` as in `mqar_frontier`."""
    full = dataclasses.replace(mqar_frontier.comparison(), trials=trials())
    return full.at_recorded_rates(trials(quick), study_files(NAME)[0]) if quick else full


def run(console: Console, *, seeds: int | None = None, quick: bool = False, device: str = "cpu") -> list[RunRecord]:
    """Run what is not recorded, print the table and draw the picture.

    `quick` takes one seed, a third of the steps and the rates of the full records, in files of its own.
    """
    path, picture = study_files(NAME, quick)
    count = seed_count(seeds, 1 if quick else mqar_frontier.SEEDS)
    results = comparison(quick).on(device).run(console, count, path)
    print_rows(console, "Accuracy, %, mean over seeds, by length and pairs", rows(results))
    draw(results, picture)
    return [record for records in results.values() for record in records]


def gain(results: Results, variant: str) -> tuple[float, bool]:
    """Points that a variant's mean over seeds lies above the start's, and whether all of its seeds lie above all of
    the start's."""
    ours, start = ([100 * mean_accuracy(record) for record in results[name]] for name in (variant, START))
    return fmean(ours) - fmean(start), min(ours) > max(start)


def rows(results: Results) -> list[list[str]]:
    """`mqar_frontier.rows`, with the rank and the gain over the start."""
    heading, *others = mqar_frontier.rows(results)
    table = [["SKA, changed in", "rank", *heading[1:4], "gain", *heading[4:]]]
    for (name, records), row in zip(results.items(), others, strict=True):
        points, clear = gain(results, name)
        shown = "" if name == START else f"{points:+.1f}" + (" *" if clear and len(records) > 1 else "")
        rank = records[0].configuration["model"]["rank"]
        unneeded = hebbian_gram_bytes(rank) if name == ONE_HEBBIAN else 0
        state = short_bytes(mqar_frontier.state_bytes(records[0]) - unneeded)
        table.append([name, str(rank), state, *row[2:4], shown, *row[4:]])
    return table


def draw(results: Results, path: Path) -> None:
    """A bar a variant, the largest gain on top."""
    values = {name: [100 * mean_accuracy(record) for record in records] for name, records in results.items()}
    order = sorted(results, key=lambda name: gain(results, name)[0])
    label = f"mean accuracy over the test cells with {BUDGET // 1024} kB of state, %"
    draw_gains(values, START, order, label, path)
