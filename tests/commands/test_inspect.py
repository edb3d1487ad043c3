"""`echo-ska inspect`: tables, pictures and figures of every kind of model, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from matplotlib.image import imread

from echo_ska.evaluation.inspection import inspect_model
from echo_ska.models import EchoConfig, EchoForCausalLM, byte_tokenizer

TEXT = "The cat sat on the mät.\nIt cost $5, {who} knew?\t\x1b[31m" * 8
PICTURES = ["eigenvalues.png", "gram.png", "positions.png", "heads.png", "tokens.png"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_heads": 2, "rank": 4, "state_size": 4}


def keep(folder, **settings):
    torch.manual_seed(0)
    EchoForCausalLM(EchoConfig(**SIZES | settings)).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def test_a_text_is_measured_printed_and_drawn(run, model_folder, tmp_path):
    file, figures, output = tmp_path / "text.txt", tmp_path / "f.json", tmp_path / "new" / "out"
    file.write_text(TEXT, encoding="utf-8")
    result = run("inspect", model_folder, "--text", file, "-o", output, "--json", figures)
    assert result.exit_code == 0, result.output
    written = json.loads(figures.read_text())
    count = len(TEXT.encode())
    assert written["input"]["tokens"] == count
    assert f"{count:,} tokens, 1 SKA layers" in result.stdout
    assert "\x1b[31m" not in result.stdout  # the text cannot command the terminal
    assert sorted(path.name for path in output.iterdir()) == sorted(PICTURES)
    for name in PICTURES:
        assert imread(output / name).std() > 0.01  # something is drawn
        assert str(output / name) in written["pictures"]
    (layer,) = written["layers"]
    model = EchoForCausalLM.from_pretrained(model_folder)
    expected = inspect_model(model, torch.tensor(list(TEXT.encode()))).layers[0]
    for head in layer["heads"]:
        assert head["condition"] == pytest.approx(float(expected.condition[-1, head["head"]]), rel=1e-5)
        assert head["write_weight"]["mean"] == pytest.approx(float(expected.write_weight[:, head["head"]].mean()))
    most = layer["written"]["most"]
    assert most[0]["mean"] >= most[1]["mean"]
    assert {entry["text"] for entry in most} <= {*TEXT, "\N{REPLACEMENT CHARACTER}"}
    assert "written most" in result.stdout
    assert "¶" in result.stdout


def test_a_text_may_stand_in_the_command_itself(run, model_folder, tmp_path):
    figures = tmp_path / "f.json"
    result = run("inspect", model_folder, "--text", "and/or so", "--length", 5, "--json", figures)
    assert result.exit_code == 0, result.output
    written = json.loads(figures.read_text())
    assert written["input"] == {"text": None, "tokens": 5}
    assert written["pictures"] == []
    for long in ("the cat sat on the mat. " * 11, "x" * 300):  # longer than a file's name can be
        result = run("inspect", model_folder, "--text", long, "--length", 5, "--json", figures)
        assert result.exit_code == 0, result.output


def test_a_task_is_shown_by_its_roles(run, model_folder, tmp_path):
    figures = tmp_path / "f.json"
    asked = ("--task", "mqar-grid", "--task-set", "pairs=2", "--length", 30, "--json", figures)
    assert run("inspect", model_folder, *asked).exit_code == 0
    written = json.loads(figures.read_text())
    assert written["input"]["tokens"] == 30
    assert set(written["layers"][0]["written"]["by_role"]) == {"key", "val", ".", "ask"}
    again = run("inspect", model_folder, *asked, "--seed", 0, "-o", tmp_path / "out")
    assert "key val key val   .   ." in again.stdout
    assert imread(tmp_path / "out" / "tokens.png").std() > 0.01


@pytest.mark.parametrize(
    ("settings", "said", "drawn"),
    [
        ({"ska_layers": [1], "power": 0}, "has power 0", ["gram.png", "positions.png", "heads.png", "tokens.png"]),
        ({"layer_types": ["mamba2", "ska-paper", "mamba2"]}, "No layer has a write gate", PICTURES[:-1]),
        ({"ska_layers": [1], "refresh_interval": 8, "num_heads": 8}, "1.7", PICTURES),
    ],
    ids=["power 0", "paper", "eight heads, chunk-causal"],
)
def test_other_kinds_of_layers(run, tmp_path, settings, said, drawn):
    folder, output = keep(tmp_path / "model", **settings), tmp_path / "out"
    result = run("inspect", folder, "--text", "some words to read, no more", "-o", output)
    assert result.exit_code == 0, result.output
    assert said in result.stdout
    assert sorted(path.name for path in output.iterdir()) == sorted(drawn)


def test_a_ridge_at_the_floor_is_warned_of(run, tmp_path):
    model = EchoForCausalLM(EchoConfig(**SIZES, ska_layers=[1]))
    with torch.no_grad():
        model.model.mixers[1].raw_ridge[1] = -40
    model.save_pretrained(tmp_path / "model")
    result = run("inspect", tmp_path / "model", "--task", "mqar")
    assert result.exit_code == 1  # mqar has 8,192 token ids, the model 256
    result = run("inspect", tmp_path / "model", "--task", "mqar", "--task-set", "vocab_size=64")
    assert "Near the limit: layer 1, head 1: its ridge stands at the floor, 0.0005" in result.stdout


def test_what_is_refused(run, refused, model_folder, tmp_path):
    refused("Give either --text", "inspect", model_folder)
    refused("Give either --text", "inspect", model_folder, "--text", "a", "--task", "mqar")
    refused("There is no folder", "inspect", tmp_path / "absent", "--text", "a b")
    refused("There is no file", "inspect", model_folder, "--text", tmp_path / "absent.txt")
    refused("There is no file absent.txt", "inspect", model_folder, "--text", "absent.txt")
    refused("is a folder: name a file", "inspect", model_folder, "--text", tmp_path)
    refused("There is no task 'nothing'", "inspect", model_folder, "--task", "nothing")
    refused("The task has 8192 token ids, the model 256", "inspect", model_folder, "--task", "mqar")
    refused("--task-set is for --task", "inspect", model_folder, "--text", "a b", "--task-set", "pairs=2")
    refused("--seed is for --task: text has no such setting", "inspect", model_folder, "--text", "a b", "--seed", 0)
    refused("fewer than --length 9", "inspect", model_folder, "--text", "a b", "--length", 9)
    refused("The text is empty", "inspect", model_folder, "--text", "")
    refused("cannot be a folder", "inspect", model_folder, "--text", "a b", "-o", model_folder / "config.json" / "out")
    refused("does not exist", "inspect", model_folder, "--text", "a b", "--json", tmp_path / "absent" / "f.json")
    none = keep(tmp_path / "none", layer_types=["mamba2"] * 3)
    refused("no SKA layer to inspect: its layers are mamba2", "inspect", none, "--text", "a b")
