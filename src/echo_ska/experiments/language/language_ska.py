"""language-ska: what makes SKA predict text better? One change at a time, in the comparison of `language-model`.

The start is its Mamba-2 + SKA with SwiGLU: the same text and parameters, at the rate that it found best, for a third of
the steps, which shows what a change costs in predicting text from its surroundings and little of what it gains by
recall, which is learnt late. A change belongs in the recipe if its seeds lie below those of the start, all of them;
Mamba-2 alone stands beside, to say what is to be reached. Three seeds; about 10 minutes a run on one core.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from echo_ska.experiments.language import language_model
from echo_ska.experiments.language.language_model_results import (
    SWIGLU,
    label,
    scored_contexts,
    scored_parts,
    spread,
    training_length,
    values,
)
from echo_ska.experiments.trials.changes import Change, no_delay, no_gate
from echo_ska.experiments.trials.comparison import Results
from echo_ska.experiments.trials.figures import draw_gains, short_bytes, short_number
from echo_ska.experiments.trials.recorded import records_named
from echo_ska.experiments.trials.studies import print_rows, seed_count, study_files
from echo_ska.experiments.trials.text_trial import TextTrial
from echo_ska.experiments.trials.texts import TEST, TextFolder
from echo_ska.experiments.trials.trial import Arm, as_large_as
from echo_ska.experiments.trials.tuning import recorded_seeds, run_seeds
from echo_ska.training import RunRecord
from echo_ska.training.text import VOCAB_SIZE

NAME = "language-ska"
PLAN = dataclasses.replace(language_model.PLAN, name=NAME, steps=600, contexts=(512, 4096))
RATE = 5e-3
START = "the start"

Fields = Mapping[str, Any]
VARIANTS: dict[str, tuple[Fields, tuple[Change, ...]]] = {
    START: ({}, ()),
    "Mamba-2 in its place": ({"layer_types": ["mamba2"] * 6}, ()),
    "gate dropout 0.2": ({"gate_dropout": 0.2}, ()),
    "no write gate": ({}, (no_gate,)),
    "power 0 (plain ridge)": ({"power": 0}, ()),
    "keys not delayed": ({}, (no_delay,)),
    "rank 48": ({"rank": 48}, ()),
    "values twice as wide": ({"head_dim": 64}, ()),
    "SKA in the first two layers": (
        {"layer_types": ["ska", "ska", "mamba2", "mamba2", "mamba2", "mamba2"], "ska_at_ends": True},
        (),
    ),
    "one layer of SKA": ({"layer_types": ["mamba2", "mamba2", "mamba2", "ska", "mamba2", "mamba2"]}, ()),
}
"""What differs from the start: fields of the configuration, and changes to the built network."""


def arms() -> list[Arm]:
    """An arm a variant, as large as the start."""
    start = next(arm for arm in PLAN.arms() if arm.name == SWIGLU)
    return [
        Arm(name, as_large_as(Arm(name, {**start.fields, **fields}), start, VOCAB_SIZE).fields, changes)
        for name, (fields, changes) in VARIANTS.items()
    ]


def trials(texts: TextFolder, quick: bool = False) -> list[TextTrial]:
    """A trial a variant; `quick` as in `language-model`."""
    plan = PLAN.quick() if quick else PLAN
    scored = plan.scorings(texts)
    return [TextTrial(NAME, arm, texts, plan.steps, plan.batch_size, plan.length, RATE, scored) for arm in arms()]


def run(
    console: Console, *, seeds: int | None = None, quick: bool = False, text: Path | None = None, device: str = "cpu"
) -> list[RunRecord]:
    """Run what is not recorded, print the table and draw the picture.

    `quick` takes one seed, 120 steps and contexts up to 2,048 bytes, in files of its own; the rest as
    `language_model.run`.
    """
    texts = TextFolder.read(text, NAME)
    planned = trials(texts, quick)
    for scoring in planned[0].scored:
        scoring.refuse_short(texts)
    path, picture = study_files(NAME, quick)
    results = run_seeds(console, planned, seed_count(seeds, 1 if quick else PLAN.seeds), path, device)
    print_rows(console, "Bits per byte, mean over seeds (range)", rows(results))
    draw(results, picture)
    return [record for records in results.values() for record in records]


def recorded_results(path: Path) -> Results:
    """What is recorded, by variant, on the texts that the newest record was trained on."""
    found = records_named(NAME, path)
    if not found:
        return {}
    planned = trials(TextFolder.of_records(found))
    return {trial.arm.name: records for trial in planned if (records := recorded_seeds(trial, path))}


def gain(results: Results, variant: str, context: int) -> tuple[float, bool]:
    """Bits per byte of unseen authors by which a variant's mean is below the start's, and whether all of its seeds are
    below all of the start's."""
    ours, start = (values(results[name], TEST, context) for name in (variant, START))
    return fmean(start) - fmean(ours), max(ours) < min(start)


def rows(results: Results) -> list[list[str]]:
    """A row a variant: its state, its gain on unseen authors, all texts at the training's context and the longest."""
    shown, parts = (training_length(results), scored_contexts(results)[-1]), scored_parts(results)
    headings = [f"{label(part)}, {short_number(context)}" for part in parts for context in shown]
    table = [["Mamba-2 + SKA, changed in", f"state at {short_number(shown[1])}", "gain", *headings]]
    for name, records in results.items():
        ahead, clear = gain(results, name, shown[0])
        starred = f"{ahead:+.3f}" + (" *" if clear and len(records) > 1 else "")
        state = records[0].figures["state_bytes"]
        table.append(
            [
                name,
                "" if state is None else short_bytes(state),
                "" if name == START else starred,
                *(spread(values(records, part, context)) for part in parts for context in shown),
            ]
        )
    return table


def draw(results: Results, path: Path) -> None:
    """A bar a variant, by unseen authors at the training's context, the largest gain on top."""
    length = training_length(results)
    of_seeds = {name: values(records, TEST, length) for name, records in results.items()}
    order = sorted(results, key=lambda name: gain(results, name, length)[0])
    draw_gains(of_seeds, START, order, f"bits per byte of unseen authors at {length} bytes", path)
