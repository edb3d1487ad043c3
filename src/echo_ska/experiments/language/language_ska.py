"""language-ska: what makes SKA predict text better? More ranks, in the comparison of `language-model`.

The start is its Mamba-2 + SKA with SwiGLU, and beside it stands Mamba-2 alone, which is to be reached: both are that
comparison's own runs, at rates tuned there, and are run first where they are missing. A change has the same text, steps
and parameters and the start's rate. It belongs in the recipe if its seeds lie below those of the start, all of them.
Three seeds; about 32 minutes a run on one core.
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
from echo_ska.experiments.trials.comparison import Results
from echo_ska.experiments.trials.figures import draw_gains, short_bytes, short_number
from echo_ska.experiments.trials.studies import print_rows, seed_count, study_files
from echo_ska.experiments.trials.texts import TEST, TextFolder
from echo_ska.experiments.trials.trial import Arm, TrainedRun, as_large_as
from echo_ska.experiments.trials.tuning import Comparison, recorded_seeds, run_seeds
from echo_ska.training import RunRecord
from echo_ska.training.text import VOCAB_SIZE

NAME = "language-ska"
PLAN = language_model.PLAN
START = "the start"
BESIDE = {SWIGLU: START, "mamba-2": "Mamba-2 in its place"}
"""What the arms of `language-model` are called here."""

VARIANTS: dict[str, Mapping[str, Any]] = {"rank 64": {"rank": 64}}
"""Fields of the configuration that differ from the start's."""


def beside(comparison: Comparison) -> Comparison:
    """Those arms of `language-model` that changes are held against."""
    return dataclasses.replace(comparison, trials=[one for one in comparison.trials if one.arm.name in BESIDE])


def trials(comparison: Comparison, rate: float) -> list[TrainedRun]:
    """A trial a change, as large as the start, at its rate."""
    start = next(one for one in comparison.trials if one.arm.name == SWIGLU)
    arms = (
        as_large_as(Arm(name, {**start.arm.fields, **fields}), start.arm, VOCAB_SIZE)
        for name, fields in VARIANTS.items()
    )
    return [start.with_(experiment=NAME, arm=arm, learning_rate=rate) for arm in arms]


def _renamed(results: Results) -> Results:
    """By what an arm is called here, the start first."""
    return {here: results[there] for there, here in BESIDE.items() if there in results}


def run(
    console: Console, *, seeds: int | None = None, quick: bool = False, text: Path | None = None, device: str = "cpu"
) -> list[RunRecord]:
    """Run what is not recorded, print the table and draw the picture.

    `quick` takes one seed, 120 steps and contexts up to 2,048 bytes, in files of its own; the rest as
    `language_model.run`.
    """
    plan = PLAN.quick() if quick else PLAN
    texts = TextFolder.read(text, NAME)
    for scoring in (*plan.tuned_on, *plan.scorings(texts)):
        scoring.refuse_short(texts)
    count, (path, picture) = seed_count(seeds, plan.seeds), study_files(NAME, quick)
    against = beside(PLAN.quick_comparison(texts) if quick else PLAN.comparison(texts))
    there = against.on(device).run(console, count, study_files(PLAN.name, quick)[0])
    changed = run_seeds(console, trials(against, _rate(there)), count, path, device)
    results = {**_renamed(there), **changed}
    print_rows(console, "Bits per byte, mean over seeds (range)", rows(results))
    draw(results, picture)
    return [record for records in results.values() for record in records]


def _rate(results: Results) -> float:
    """The start's."""
    return float(results[SWIGLU][0].figures["learning_rate"])


def recorded_results(path: Path, there: Path) -> Results:
    """What is recorded, by variant, on the texts that the newest record of `language-model`, in `there`, was trained
    on."""
    whole = PLAN.recorded_comparison(there)
    if whole is None:
        return {}
    results = beside(whole).recorded(there)
    if SWIGLU not in results:
        return {}
    planned = trials(whole, _rate(results))
    changed = {trial.arm.name: records for trial in planned if (records := recorded_seeds(trial, path))}
    return {**_renamed(results), **changed}


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
