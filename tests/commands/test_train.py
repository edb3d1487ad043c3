"""`echo-ska train`: recipes give way to options, curves are kept beside the run, and records stay as they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from echo_ska.benchmarks.cost import training_cost
from echo_ska.commands import goals, rare_lines
from echo_ska.commands import train as train_module
from echo_ska.models import EchoConfig
from echo_ska.training.checkpoint import list_checkpoints
from echo_ska.training.recipes import RECIPES
from echo_ska.training.records import read
from echo_ska.training.resume import held_folder

TINY = [
    f"--set={field}" for field in ("hidden_size=16", "num_heads=2", "rank=4", "state_size=4", "intermediate_size=16")
]
SHORT = ["--steps=10", "--batch-size=2", "--length=16", "--score-bytes=64", "--samples=0"]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("What is learnt here does not matter [red]. " * 30)
    return path


def curves(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: {event.step: event.value for event in events.Scalars(name)} for name in events.Tags()["scalars"]}


def test_curves_have_the_log_and_the_use_of_the_hardware(run, text, tmp_path, monkeypatch):
    monkeypatch.setattr(train_module, "device_peak", lambda device, bfloat16: 1e12)  # of a CPU no peak is known
    output = tmp_path / "run"
    result = run("train", "--text", text, *TINY, *SHORT, "--output", output, "--tensorboard")
    assert result.exit_code == 0, result.output
    found, (record,) = curves(output / "tensorboard"), read(output / "records.jsonl")
    assert found["training/loss"][10] == pytest.approx(record.figures["loss"])
    assert found["evaluation/bits_per_byte"][10] == pytest.approx(record.figures["bits_per_byte"])
    assert found["training/peak_memory_bytes"][10] > 1e6
    model = {name: value for name, value in record.configuration["model"].items() if name != "class"}
    cost = training_cost(EchoConfig(**model), 16, tokens=1)
    mfu = record.figures["tokens_per_second"] * cost.flops_per_token / 1e12
    assert found["training/mfu"][10] == pytest.approx(mfu)
    assert f"MFU {100 * mfu:.1f} %" in result.stdout
    assert "GB at most" in result.stdout
    assert not {"mfu", "peak_memory_bytes"} & record.figures.keys()


@pytest.mark.parametrize("too_large", ["model.safetensors", "tokenizer.json"])
def test_a_disk_that_is_full_at_the_end_costs_no_training(run, text, tmp_path, files_up_to, too_large):
    output = tmp_path / "run"
    command = ["train", "--text", text, *TINY, *SHORT, "--output", output]
    assert run(*command).exit_code == 0
    model = {path.name: path.read_bytes() for path in (output / "model").iterdir()}
    for before in (model, {}):  # a model of the same run that stands there stays whole; then there is none
        if not before:
            (output / "model").rename(tmp_path / "aside")
        with files_up_to(len(model[too_large]) - 1):
            result = run(*command)
        assert result.exit_code == 1
        assert f"The model {output / 'model'} could not be written (" in result.stderr
        assert "too large" in result.stderr.lower()
        assert f"the checkpoints in {output} are kept: make room, or see that" in result.stderr
        assert result.stderr.count("\n") == 1
        assert len(list_checkpoints(output)) == 1
        assert not list(output.glob(".partial-*"))
        assert {path.name: path.read_bytes() for path in output.glob("model/*")} == before
    assert run(*command).exit_code == 0
    assert {path.name: path.read_bytes() for path in (output / "model").iterdir()} == model
    assert len(read(output / "records.jsonl")) == 1


def test_lines_say_how_much_held_out_text_is_scored(run, text, monkeypatch):
    monkeypatch.setattr(rare_lines, "LINE_SECONDS", 0.0)
    result = run("train", "--text", text, *TINY, *SHORT, "--score-bytes=64")
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stdout.splitlines() if line.startswith("Scoring held-out text: ")]
    assert lines
    assert set(lines) == {"Scoring held-out text: 64 of 64 bytes read."}


def test_a_finished_run_is_scored_on_what_is_asked_now(run, text, tmp_path):
    output, figures = tmp_path / "run", tmp_path / "figures.json"
    command = ["train", "--text", text, *TINY, *SHORT, "--output", output, "--json", figures]
    found = []
    for score_bytes in (64, 64, 16):
        result = run(*command, f"--score-bytes={score_bytes}")
        assert result.exit_code == 0, result.output
        found.append(json.loads(figures.read_text())["figures"])
    assert [figure["bytes_scored"] for figure in found] == [63, 63, 15]
    assert found[0] == found[1]
    assert found[2]["bits_per_byte"] != found[0]["bits_per_byte"]
    assert f"{found[2]['bits_per_byte_before']:.3f} bits per byte before, {found[2]['bits_per_byte']:.3f} after" in (
        result.stdout
    )
    assert [record.figures["bytes_scored"] for record in read(output / "records.jsonl")] == [63, 15]


def test_a_score_on_another_text_of_the_same_length_is_recorded_too(run, tmp_path):
    texts = {name: tmp_path / f"{name}.txt" for name in ("learnt", "one", "other")}
    for name, path in texts.items():
        path.write_text(f"What stands in {name} is written again and again. " * 30)
    output = tmp_path / "run"
    for name in ("one", "other", "one"):
        given = ["--text", texts["learnt"], "--text", texts[name], "--held-out", texts[name]]
        result = run("train", *given, *TINY, *SHORT, "--score-bytes=64", "--output", output)
        assert result.exit_code == 0, result.output
    first, second = read(output / "records.jsonl")
    assert first.configuration == second.configuration
    assert first.figures["bytes_scored"] == second.figures["bytes_scored"] == 63
    assert first.figures["bits_per_byte"] != second.figures["bits_per_byte"]


def test_a_run_that_was_stopped_in_its_last_evaluation_goes_on(run, text, tmp_path, monkeypatch):
    output = tmp_path / "run"
    command = ["train", "--text", text, *TINY, *SHORT, "--output", output]

    def stopped(self, model, step):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(goals.LearnText, "evaluate", stopped)
        result = run(*command)
    assert result.exit_code == 130
    assert "go on from" in result.stderr
    assert [path.name for path in list_checkpoints(output)] == ["step-000010"]
    assert run(*command).exit_code == 0
    assert read(output / "records.jsonl")[0].figures["bytes_scored"] == 63


def test_held_out_texts_of_one_byte_are_refused_before_the_first_step(refused, text, tmp_path):
    (tmp_path / "one.txt").write_text("a")
    command = ["train", "--text", text, "--text", tmp_path / "one.txt", "--held-out", tmp_path / "one.txt"]
    refused("Each text that is held out is of one byte", *command, *TINY, *SHORT, "--output", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", ["false", "null"])
def test_a_model_that_returns_tuples_is_refused(refused, text, tmp_path, value):
    command = ["train", "--text", text, *TINY, *SHORT, "--output", tmp_path / "run"]
    refused("leave out return_dict=false", *command, f"--set=return_dict={value}")
    assert not (tmp_path / "run").exists()


def test_what_somebody_put_beside_a_model_stays(run, text, tmp_path):
    command = ["train", "--text", text, *TINY, *SHORT, "--output", tmp_path / "run"]
    assert run(*command).exit_code == 0
    (tmp_path / "run" / "model" / "README.md").write_text("mine")
    assert run(*command).exit_code == 0
    assert (tmp_path / "run" / "model" / "README.md").read_text() == "mine"


def test_without_a_known_peak_there_is_no_mfu(run, text, tmp_path):
    result = run("train", "--text", text, *TINY, *SHORT, "--device=cpu", "--output", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "GB at most" in result.stdout
    assert "MFU" not in result.stdout
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_a_second_run_opens_no_curves_in_the_first_ones_folder(run, text, tmp_path):
    (tmp_path / "run").mkdir()
    with held_folder(tmp_path / "run"):
        result = run("train", "--text", text, *TINY, *SHORT, "--output", tmp_path / "run", "--tensorboard")
    assert result.exit_code != 0
    assert "nother process is training in" in " ".join(result.output.split())
    assert not list((tmp_path / "run").iterdir())


def test_a_refused_command_opens_no_curves_of_the_run_that_it_was_refused_for(run, text, tmp_path):
    command = ["train", "--text", text, *TINY, *SHORT, "--output", tmp_path / "run", "--tensorboard"]
    assert run(*command).exit_code == 0
    before = sorted((tmp_path / "run" / "tensorboard").iterdir())
    result = run(*command, "--learning-rate", "0.5", "--wandb=echo")
    assert result.exit_code != 0
    assert "--learning-rate 0.5, but the run in" in result.stderr
    assert "was begun with --learning-rate 0.003: give the same options" in result.stderr
    assert "Going on from" not in result.stdout
    assert sorted((tmp_path / "run" / "tensorboard").iterdir()) == before
    assert not (tmp_path / "run" / "wandb").exists()


@pytest.mark.parametrize("option", [["--tensorboard"], ["--wandb=echo"]])
def test_curves_need_a_folder(refused, text, option):
    refused("give --output DIR", "train", "--text", text, *option)


def test_weights_and_biases_is_told(text, tmp_path):
    pytest.importorskip("wandb", reason="pip install 'echo-ska[wandb]'")
    command = ["train", "--text", text, *TINY, *SHORT, "--output", tmp_path / "run", "--wandb", "echo"]
    subprocess.run(
        [sys.executable, "-m", "echo_ska", *map(str, command)],
        env=os.environ | {"WANDB_MODE": "offline", "WANDB_SILENT": "true"},
        check=True,
        capture_output=True,
    )
    assert json.loads((tmp_path / "run" / "wandb" / "run.json").read_text())["step"] == 10
    assert list((tmp_path / "run" / "wandb").rglob("*.wandb"))


def test_a_recipe_gives_what_is_not_given(run, tmp_path):
    figures = tmp_path / "figures.json"
    result = run("train", "--recipe", "echo-novel", *TINY, *SHORT, "--seed=3", "--json", figures)
    assert result.exit_code == 0, result.output
    configuration = json.loads(figures.read_text())["configuration"]
    recipe = RECIPES["echo-novel"]
    assert configuration["training"]["learning_rate"] == recipe.training.learning_rate == 4e-3
    assert configuration["training"]["checkpoint_every"] == recipe.training.checkpoint_every
    assert configuration["training"]["steps"] == 10  # given: the recipe's is 500
    assert (configuration["data"]["length"], configuration["data"]["batch_size"]) == (16, 2)


def test_what_is_given_goes_before_a_recipe_even_where_it_is_the_default(run, text, tmp_path):
    figures = tmp_path / "figures.json"
    command = ["train", "--recipe", "echo-novel", "--text", text, *TINY, *SHORT, "--learning-rate=3e-3"]
    result = run(*command, "--json", figures)
    assert result.exit_code == 0, result.output
    assert "Learning 1," in result.stdout  # 1,161 bytes of our text, not a novel
    assert json.loads(figures.read_text())["configuration"]["training"]["learning_rate"] == 3e-3


def test_recipes_that_need_something(refused):
    refused("learns a corpus: give --data DIR, which `echo-ska data prepare hub:", "train", "--recipe=echo-180m")
    refused("there is no TRAIN/ and no TEST/ here: give --text PATH", "train", "--recipe=echo-books")
    refused("no recipe 'nope': choose from echo-novel", "train", "--recipe=nope")


@pytest.mark.parametrize("recipe", ["echo-novel", "echo-180m"])
def test_a_task_has_other_token_ids_than_a_recipe(refused, recipe):
    said = (
        f"--recipe is for --text and --data: a task has token ids of its own, with which {recipe} would train another"
    )
    refused(said, "train", "--recipe", recipe, "--task=mqar")
    refused(f"leave --recipe out, and give --model {RECIPES[recipe].model}", "train", "--recipe", recipe, "--task=mqar")


@pytest.mark.parametrize(
    "option", ["--score-bytes=64", "--samples=2", "--sample-bytes=9", "--temperature=0.8", "--top-k=3"]
)
def test_what_says_how_text_is_written_and_scored_is_no_setting_of_a_task(refused, option):
    name = option.partition("=")[0]
    refused(f"{name} is for --text and --data: a task has no such setting", "train", "--task=mqar", option)
