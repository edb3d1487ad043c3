"""Trials in small: what is recorded, resumed, found again, matched in size and tuned alike."""

from __future__ import annotations

import inspect
import io
import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from in_process import Silent, run_here
from rich.console import Console

from echo_ska.experiments import EXPERIMENTS
from echo_ska.experiments.trials import recorded as recorded_runs
from echo_ska.experiments.trials import trial as trials
from echo_ska.experiments.trials import tuning
from echo_ska.experiments.trials.arms import million_arms, small, small_arms
from echo_ska.experiments.trials.changes import no_gate, paper_ridge, ska_layers
from echo_ska.experiments.trials.comparison import cell, draw_by_length, table_rows
from echo_ska.experiments.trials.trial import Arm, Question, Trial, run_trial
from echo_ska.experiments.trials.tuning import Comparison, mean_and_range
from echo_ska.models.presets import count_parameters
from echo_ska.tasks import MultiQueryRecallGrid
from echo_ska.training import RunRecord

TASK = MultiQueryRecallGrid(pairs=2, gap=4)
TINY = {"hidden_size": 16, "rank": 4, "state_size": 4}
ASKED = (Question("12", TASK, 12, 8), Question("40", TASK, 40, 4))


def tiny_trial(arm: Arm | None = None, **settings) -> Trial:
    arm = arm or small("ska", "ssm+ska", **TINY)
    return Trial("tiny", arm, TASK, 3, 4, 1e-2, ASKED, **settings)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs jobs in this process and in a folder of its own; returns the names of those run."""
    monkeypatch.chdir(tmp_path)
    names: list[str] = []

    def run_jobs(jobs, console, *, on_result):
        names.extend(job.name for job in jobs)
        for name, result in run_here(jobs).items():
            on_result(name, json.loads(json.dumps(result)))

    monkeypatch.setattr(recorded_runs, "run_jobs", run_jobs)
    return names


def test_a_trial_records_what_it_was_and_what_it_found():
    trial = tiny_trial(seed=1, measure=count_layers)
    record = RunRecord(**run_trial(lambda stage: Silent(), trial=trial))
    assert record.configuration == trial.configuration() == json.loads(json.dumps(trial.configuration()))
    assert trial.recorded_run().matches(record)
    assert not replace(trial, learning_rate=1e-3).recorded_run().matches(record)
    assert set(record.figures["accuracy"]) == {"12", "40"}
    assert record.figures["layers"] == 3
    assert record.figures["parameters"] == count_parameters(trial.arm.config(TASK.vocab_size))


def test_a_record_counts_wherever_it_was_made_but_in_no_other_precision():
    trial = tiny_trial()
    here, on_a_gpu = trial.recorded_run(), trial.recorded_run("cuda")
    assert on_a_gpu.job.arguments["device"] == "cuda"
    assert on_a_gpu.configuration["training"] | {"device": "cpu", "precision": "auto"} == here.configuration["training"]
    assert on_a_gpu.configuration["training"]["precision"] == "fp32"  # "auto" would take bfloat16
    assert on_a_gpu.folder != here.folder  # checkpoints are not mixed
    record = RunRecord(**run_trial(lambda stage: Silent(), trial=trial))
    assert on_a_gpu.matches(record)
    assert here.matches(replace(record, configuration=on_a_gpu.configuration))
    for device in ("cpu", "cuda"):
        training = record.configuration["training"] | {"device": device, "precision": "bf16"}
        in_bf16 = replace(record, configuration=record.configuration | {"training": training})
        assert not here.matches(in_bf16)
        for sought in ("cpu", "cuda"):  # which experiments look for, wherever they trained
            wanted = {"training": training | {"device": sought}}
            assert replace(here, configuration=here.configuration | wanted).matches(in_bf16)


def test_every_experiment_that_may_use_a_gpu_takes_one():
    for name, experiment in EXPERIMENTS.items():
        parameters = inspect.signature(import_module(experiment.module).run).parameters
        assert ("device" in parameters) == experiment.takes_device, name


def test_a_comparison_trains_where_it_is_told_and_so_many_at_once(monkeypatch, tmp_path):
    found = []

    def run_jobs(jobs, console, *, on_result, cores):
        found.extend((job.arguments["device"], cores) for job in jobs)
        raise KeyboardInterrupt

    monkeypatch.setattr(tuning, "run_jobs", run_jobs)
    monkeypatch.setattr(tuning, "places", lambda device: 5)
    comparison = Comparison([tiny_trial()], (1e-3, 1e-2), tiny_trial().questions).on("cuda")
    for asked, cores in ((comparison, 5), (replace(comparison, at_once=2), 2)):
        found.clear()
        with pytest.raises(KeyboardInterrupt):
            asked.run(Console(quiet=True), 1, tmp_path / "none.jsonl")
        assert found == [("cuda", cores)] * 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_finds_the_same_but_for_rounding():
    found = [run_trial(lambda stage: Silent(), trial=tiny_trial(), device=device) for device in ("cpu", "cuda")]
    losses = [each["figures"]["training_loss"] for each in found]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert found[1]["hardware"]["gpu"]


def count_layers(network, trial):
    return {"layers": network.config.num_hidden_layers}


def test_a_stopped_trial_goes_on_where_it_was(monkeypatch):
    trial = tiny_trial()
    whole = run_trial(lambda stage: Silent(), trial=trial)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(trials, "ask", stop)
        with pytest.raises(KeyboardInterrupt):
            run_trial(lambda stage: Silent(), trial=trial)
    assert len(list(trials.UNFINISHED.iterdir())) == 1
    steps = []

    class Watching(Silent):
        def update(self, step, total, figures):
            steps.append(step)

    resumed = run_trial(lambda stage: Watching(), trial=trial)
    assert resumed["figures"]["accuracy"] == whole["figures"]["accuracy"]
    assert min(steps) == trial.steps  # nothing was trained again


@pytest.mark.parametrize("mixer", ["ska", "mamba2"])
def test_a_divergence_is_recorded_with_nothing_right(mixer):
    trial = replace(tiny_trial(small(mixer, **TINY)), learning_rate=1e30)
    record = run_trial(lambda stage: Silent(), trial=trial)
    assert record["figures"]["diverged"]
    assert record["figures"]["parameters"] == count_parameters(trial.arm.config(TASK.vocab_size))
    assert set(record["figures"]["accuracy"].values()) == {0.0}


def test_changes_and_masks_reach_the_layer():
    arm = replace(small("ska", **TINY), changes=(no_gate, paper_ridge), written_prefix=4)
    network = arm.build(TASK.vocab_size, 0).eval()
    (ska,) = ska_layers(network)
    assert ska.gate_proj is None
    assert ska.ridge.tolist() == pytest.approx([1e-3, 1e-3])
    tokens = TASK.sample(1, torch.Generator().manual_seed(0)).input_ids
    handed = []
    ska.register_forward_pre_hook(
        lambda module, arguments, options: handed.append(options["write_mask"]), with_kwargs=True
    )
    with torch.no_grad():
        network(tokens, use_cache=False)
    assert handed[0].tolist() == [[True] * 4 + [False] * 8]
    with pytest.raises(ValueError, match="reads its sequences whole"):
        network(tokens[:, 8:], past_key_values=network(tokens[:, :8], use_cache=True).past_key_values)


def test_a_network_without_ska_cannot_be_changed():
    arm = replace(small("mamba2", **TINY), changes=(no_gate,))
    with pytest.raises(ValueError, match="no SKA layer"):
        arm.build(TASK.vocab_size, 0)


@pytest.mark.parametrize("arms", [small_arms, million_arms])
def test_arms_are_of_one_size(arms):
    sizes = [count_parameters(arm.config(128)) for arm in arms(128)]
    assert max(sizes) <= 1.01 * min(sizes)
    assert [arm.name for arm in arms(128)] == ["ssm", "ssm+attention", "ssm+ska"]


def test_every_arm_gets_its_best_rate_and_all_seeds_run_at_it(here, tmp_path):
    echo = small("ska", "ssm+ska", **TINY)
    both = [tiny_trial(echo), tiny_trial(small("mamba2", "ssm", **TINY))]
    console, path = Console(file=io.StringIO()), tmp_path / "tiny.jsonl"
    comparison = Comparison(both, (1e-30, 1e-2), ASKED[:1], tuning_steps=2)
    assert comparison.recorded(path) == {}
    results = comparison.run(console, 2, path)
    assert len(here) == 4 + 4
    for arm, records in results.items():
        assert [record.seed for record in records] == [0, 1]
        assert {record.figures["arm"] for record in records} == {arm}
        tried = [json.loads(line)["figures"] for line in path.read_text().splitlines()[:4]]
        own = [figures for figures in tried if figures["arm"] == arm]
        best = max(own, key=lambda figures: (figures["accuracy"]["12"], -figures["training_loss"]))
        assert {record.figures["learning_rate"] for record in records} == {best["learning_rate"]}
    assert not any(trials.UNFINISHED.iterdir())  # what is recorded needs no checkpoints
    first = json.loads(path.read_text().splitlines()[0])["configuration"]["questions"]["12"]
    last = json.loads(path.read_text().splitlines()[-1])["configuration"]["questions"]["12"]
    assert first["asked_with"] != last["asked_with"]  # no rate is chosen by what is reported
    assert comparison.run(console, 2, path) == results
    assert len(here) == 8
    assert comparison.recorded(path) == results
    assert len(comparison.tries(path)) == 4
    other = Comparison(both, (1e-30, 1e-2, 1.0), ASKED[:1], tuning_steps=2)
    assert other.recorded(path) == {}  # a rate is still to be tried
    rows = table_rows(results, {"12": "at 12", "40": "at 40", "unasked": "?"})
    assert [len(row) for row in rows] == [4, 4, 4]
    assert rows[1][3] == ""
    mean, low, high = mean_and_range(results["ssm"], "12")
    assert low <= mean <= high
    assert cell([], "12") == ""
    draw_by_length(results, {"12": 12, "40": 40}, tmp_path / "picture.png", "a title", TASK.chance)
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_no_seeds_are_refused(tmp_path):
    with pytest.raises(ValueError, match="seeds must be at least 1"):
        Comparison([tiny_trial()], (1e-2,), ASKED).run(Console(), 0, tmp_path / "x.jsonl")
