"""Every trained experiment from its runs to its table and picture. Trials themselves run for real in test_trial.py.

What a run would have found is made up here, at random but the same for the same run, since training takes hours.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import random
from importlib import import_module
from pathlib import Path

import pytest
from made_up import of_trial
from matplotlib.image import imread
from rich.console import Console

from echo_ska.experiments import EXPERIMENTS
from echo_ska.experiments.algebra.state_precision import PRECISIONS
from echo_ska.experiments.recall.length_conditioning import conditioning
from echo_ska.experiments.recall.trained_precision import rounded_recall
from echo_ska.experiments.trials import recorded as recorded_runs
from echo_ska.experiments.trials.trial import Trial
from echo_ska.models.presets import count_parameters
from echo_ska.training.records import read

TRAINED = (
    "aids",
    "cliff",
    "filter-ablation",
    "gradient-flow",
    "length-conditioning",
    "length-generalisation",
    "memory-first",
    "mqar-frontier",
    "mqar-grid",
    "recall-per-byte",
    "trained-precision",
    "transfer",
    "write-gate",
)


def by_chance(trial: Trial) -> dict:
    """A record of the trial with figures that a hash of it decides."""
    text = json.dumps([trial.configuration(), trial.seed], sort_keys=True)
    chance = random.Random(hashlib.sha256(text.encode()).hexdigest())
    figures: dict = {
        "parameters": count_parameters(trial.arm.config(trial.task.vocab_size)),
        "training_loss": chance.random(),
    }
    if trial.measure is conditioning:
        figures["ridge"] = [chance.random(), chance.random()]
        figures["conditioning"] = {
            question.name: {"lambda_min": [0.1, chance.random()], "lambda_max": [2.0, 3.0], "margin": chance.random()}
            for question in trial.questions
        }
    elif trial.measure is rounded_recall:
        questions = {question.name: chance.random() for question in trial.questions}
        figures["rounded"] = dict.fromkeys(PRECISIONS, questions)
    elif trial.measure is not None:
        figures["gradient"] = {
            state: {
                question.name: dict.fromkeys(("norm", "faded", "participation", "rank"), chance.random())
                for question in trial.questions
            }
            for state in ("untrained", "trained")
        }
    return dataclasses.asdict(of_trial(trial, lambda *_: chance.random(), **figures))


@pytest.fixture(autouse=True)
def trials_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Trial]:
    """Makes up what runs would find; returns those that were to be run."""
    monkeypatch.chdir(tmp_path)
    trials: list[Trial] = []

    def run_jobs(jobs, console, *, on_result):
        for job in jobs:
            trials.append(job.arguments["trial"])
            on_result(job.name, json.loads(json.dumps(by_chance(job.arguments["trial"]))))

    monkeypatch.setattr(recorded_runs, "run_jobs", run_jobs)
    return trials


@pytest.mark.parametrize("quick", [False, True], ids=["full", "quick"])
@pytest.mark.parametrize("name", TRAINED)
def test_it_runs_once_prints_its_table_and_draws(name: str, quick: bool, trials_run: list[Trial]) -> None:
    screen = io.StringIO()
    seeds = None if quick else 2
    records = EXPERIMENTS[name].run(Console(file=screen, width=200), seeds=seeds, quick=quick)
    assert trials_run
    assert records
    assert {record.name for record in records} == {name}
    stem = Path("results") / (f"{name}-quick" if quick else name)
    assert len(read(stem.with_suffix(".jsonl"))) == len(trials_run)
    assert imread(stem.with_suffix(".png")).shape[1] > 800
    for record in records:
        arm = record.figures["arm"].split(",")[0]
        assert arm.removeprefix("ssm+ska ") in screen.getvalue() or name in ("aids", "cliff", "filter-ablation")

    before = len(trials_run)
    again = EXPERIMENTS[name].run(Console(file=io.StringIO(), width=200), seeds=seeds, quick=quick)
    assert len(trials_run) == before  # nothing is run twice
    assert again == records


def counted_operations(trial: Trial) -> float:
    """Of a training and its questions: six a parameter and token that is learnt, two a token that is asked."""
    step = trial.data().batch(0)["input_ids"].numel()
    asked = sum(question.length * question.sequences for question in trial.questions)
    return count_parameters(trial.arm.config(trial.task.vocab_size)) * (6 * trial.steps * step + 2 * asked)


@pytest.mark.parametrize("name", TRAINED)
def test_quick_forms_take_about_ten_minutes_by_their_counted_operations(name: str, trials_run: list[Trial]) -> None:
    EXPERIMENTS[name].run(Console(file=io.StringIO()), quick=True)
    # filter-ablation's 28 runs of 45 seconds on one core each, ten minutes on two, count 4.2e13
    assert 0 < sum(counted_operations(trial) for trial in trials_run) < 5e13


def test_quick_forms_take_the_rates_that_the_records_found_best(trials_run: list[Trial]) -> None:
    console = Console(file=io.StringIO())
    run = EXPERIMENTS["mqar-grid"].run
    unrecorded = {r.figures["learning_rate"] for r in run(console, quick=True)}
    assert unrecorded == {import_module(EXPERIMENTS["mqar-grid"].module).RATES[2]}
    best = {record.figures["arm"]: record.figures["learning_rate"] for record in run(console, seeds=1)}
    assert len(set(best.values())) > 1
    assert {record.figures["arm"]: record.figures["learning_rate"] for record in run(console, quick=True)} == best


@pytest.mark.parametrize("name", TRAINED)
def test_all_arms_have_one_budget_and_are_asked_alike(name: str) -> None:
    module = import_module(EXPERIMENTS[name].module)
    if name == "filter-ablation":
        groups = [module.recall_trials(), *(module.orbit_trials(distance) for distance in module.DISTANCES)]
    elif name == "aids":
        groups = [[module.trial(mixer, taken) for mixer in module.MIXERS for taken in module.TAKEN]]
    elif name == "write-gate":
        groups = [module.long_trials(), module.transfer_trials()]
    else:
        groups = [module.trials()]
    for trials in groups:
        assert len({trial.arm.name for trial in trials}) == len(trials)
        assert (
            len({(trial.steps, trial.batch_size, trial.task, trial.schedule, trial.weight_decay) for trial in trials})
            == 1
        )
        longest = max((trial.questions for trial in trials), key=len)
        for trial in trials:
            assert trial.questions == longest[: len(trial.questions)]
            masked = trial.arm.written_prefix is not None
            assert masked == ("mask" in trial.arm.name)  # a mask is named where it is handed out


@pytest.mark.parametrize("seeds", [{1}, {0, 1}], ids=["some", "all"])
@pytest.mark.parametrize("name", ["cliff", "gradient-flow", "length-conditioning", "length-generalisation"])
def test_trainings_that_diverged_are_shown_and_drawn_around(
    name: str, seeds: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = 0

    def run_jobs(jobs, console, *, on_result):
        nonlocal made
        for job in jobs:
            record = by_chance(job.arguments["trial"])
            if job.arguments["trial"].seed in seeds:
                record["figures"] = {
                    "arm": record["figures"]["arm"],
                    "learning_rate": record["figures"]["learning_rate"],
                    "parameters": record["figures"]["parameters"],
                    "diverged": "The loss became nan at step 1.",
                    "training_loss": None,
                    "training_accuracy": 0.0,
                    "accuracy": dict.fromkeys(record["figures"]["accuracy"], 0.0),
                }
                made += 1
            on_result(job.name, json.loads(json.dumps(record)))

    monkeypatch.setattr(recorded_runs, "run_jobs", run_jobs)
    EXPERIMENTS[name].run(Console(file=io.StringIO(), width=200), seeds=2)
    assert made
    assert imread(Path("results") / f"{name}.png").shape[1] > 800
