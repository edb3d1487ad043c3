"""Records as experiments would write them, with figures that a test chooses instead of a training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from echo_ska.experiments.trials.text_trial import TextTrial
from echo_ska.experiments.trials.trial import Trial
from echo_ska.experiments.trials.tuning import Comparison
from echo_ska.training import RunRecord
from echo_ska.training.records import append

Accuracy = Callable[[str, str], float]
"""By arm and question, 0 to 1."""

HARDWARE = {"cpu": "An <abacus>", "cores": 2, "threads": 1, "gpu": None}


def made_up(name: str, configuration: dict[str, Any], figures: dict[str, Any], seed: int = 0) -> RunRecord:
    """A record with these figures."""
    return RunRecord(
        name=name,
        configuration=configuration,
        figures=figures,
        seed=seed,
        seconds=60.0,
        commit="0123456789abcdef",
        dirty=False,
        date="2030-01-02T03:04:05+00:00",
        hardware=HARDWARE,
        versions={"python": "3.11", "torch": "2.13.0"},
        peak_memory_bytes=None,
    )


def of_trial(trial: Trial, accuracy: Accuracy, **more: Any) -> RunRecord:
    """What a trial would record had it answered so."""
    figures = {
        "arm": trial.arm.name,
        "learning_rate": trial.learning_rate,
        "parameters": 1000,
        "training_loss": 0.1,
        "accuracy": {question.name: accuracy(trial.arm.name, question.name) for question in trial.questions},
    }
    return made_up(trial.experiment, trial.configuration(), figures | more, trial.seed)


def of_text_trial(
    trial: TextTrial, bits: Callable[[str, str, int], float], device: str = "cpu", **more: Any
) -> RunRecord:
    """What a trial on text would record had it scored so, by arm, part and context."""
    scores = {one.part: {str(c): bits(trial.arm.name, one.part, c) for c in one.contexts} for one in trial.scored}
    figures = {
        "arm": trial.arm.name,
        "learning_rate": trial.learning_rate,
        "parameters": 1000,
        "training_loss": 1.5,
        "curve": [[100, 2.0]],
        "state_bytes": 70_000,
        "bits_per_byte": scores,
    }
    return made_up(trial.experiment, trial.configuration(device), figures | more, trial.seed)


def write_comparison(path: Path, comparison: Comparison, seeds: int, accuracy: Accuracy) -> None:
    """All that `Comparison.run` would leave: tries at every rate, and seeds at the first of them (or its own)."""
    for trial in comparison.trials:
        for tried in comparison.candidates(trial):
            append(of_trial(tried, lambda *_: 0.5), path)
        at_rate = trial.with_(learning_rate=comparison.rates[0]) if comparison.rates else trial
        write_trials(path, [at_rate], seeds, accuracy)


def write_trials(
    path: Path,
    trials: Sequence[Trial],
    seeds: int,
    accuracy: Accuracy,
    more: Callable[[Trial], dict[str, Any]] = lambda _: {},
) -> None:
    """Every trial with every seed; `more` gives further figures."""
    for trial in (trial.with_(seed=seed) for trial in trials for seed in range(seeds)):
        append(of_trial(trial, accuracy, **more(trial)), path)
