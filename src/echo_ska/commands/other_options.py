"""How the options of `echo-ska train` differ from those that a run was begun with, in their own words."""

from __future__ import annotations

from typing import Any

from echo_ska.commands.goals import TrainRequest
from echo_ska.tasks import TASKS

OPTIONS = {
    "training.steps": "--steps",
    "training.learning_rate": "--learning-rate",
    "training.precision": "--precision",
    "training.device": "--device",
    "training.seed": "--seed",
    "data.seed": "--seed",
    "data.batch_size": "--batch-size",
    "data.length": "--length",
}
"""The option that says it, of what a checkpoint's configuration holds."""

LEARNT = {"data.blake2b": "--text", "data.sha256": "--data", "data.task": "--task"}
"""A field that what is learnt has, and its option."""

NAMED = 3
"""That many differences are told."""


def other_options(request: TrainRequest, differing: dict[str, tuple[Any, Any]]) -> str:
    """A sentence that names what is asked for and what the run was begun with.

    Args:
        request: what is asked for, with an output folder.
        differing: the recorded and the asked value by dotted name, as `OtherSettingsError` has them.
    """
    told: dict[str, str] = {}  # what is asked for: what the run has, each once
    for name, (recorded, asked) in differing.items():
        if name in OPTIONS and None not in (recorded, asked):  # some of what is learnt has no length, say
            told[f"{OPTIONS[name]} {asked}"] = f"{OPTIONS[name]} {recorded}"
    told |= _learnt(request, differing)
    for name, (recorded, asked) in differing.items():
        part, _, field = name.partition(".")
        if part == "model" and field != "vocab_size":  # which follows from what is learnt
            told[f"{field} {asked} (--model, --set)"] = f"{field} {recorded}"
        elif part == "training" and name not in OPTIONS:
            told[f"{field} {asked}"] = f"{field} {recorded}"
    if not told:
        told["other parameters to train"] = "its own"
    now, was = list(told)[:NAMED], list(told.values())[:NAMED]
    more = f" (and {len(told) - NAMED} more differ)" if len(told) > NAMED else ""
    return (
        f"{' and '.join(now)}, but the run in {request.output} was begun with {' and '.join(was)}{more}: give the same "
        "options to go on with it, or another --output."
    )


def _learnt(request: TrainRequest, differing: dict[str, tuple[Any, Any]]) -> dict[str, str]:
    """Where what is learnt differs, by its kind."""
    kinds = {name: values for name, values in differing.items() if name in LEARNT}
    if any(None in values for values in kinds.values()):  # text was learnt and a task is to be, say
        now, was = (
            next(_kind(name, values[place]) for name, values in kinds.items() if values[place] is not None)
            for place in (1, 0)
        )
        return {now: was}
    if "data.task" in kinds:
        recorded, asked = kinds["data.task"]
        return {_task(asked): _task(recorded)}
    if request.task is not None:
        fields = {name.partition(".")[2]: values for name, values in differing.items() if name.startswith("data.")}
        return {
            f"--task-set {field}={asked}": f"{field}={recorded}"
            for field, (recorded, asked) in fields.items()
            if f"data.{field}" not in OPTIONS
        }
    if any(name.startswith("data.") and name not in OPTIONS for name in differing):
        return {"this corpus (--data)" if request.data is not None else "this text (--text, --held-out)": "another"}
    return {}


def _kind(name: str, value: Any) -> str:
    return _task(value) if name == "data.task" else LEARNT[name]


def _task(kind: str) -> str:
    """The option for a task of that class."""
    return f"--task {next((name for name, task in TASKS.items() if task.__name__ == kind), kind)}"
