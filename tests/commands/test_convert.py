"""`echo-ska convert` on models of a second's size: what it prints and keeps, and what it refuses."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from echo_ska.cli import app
from echo_ska.convert import load_converted
from echo_ska.models import train_bpe

SMALL = ("--length", 16, "--batch-size", 2, "--matching-steps", 2, "--finetuning-steps", 2, "--device", "cpu")


def run(*arguments):
    return CliRunner().invoke(app, ["convert", *map(str, arguments)], env={"COLUMNS": "200"})


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("It was the best of times, it was the worst of times. " * 40)
    return path


def llama(folder, vocab_size=256):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=vocab_size, bos_token_id=None, eos_token_id=None, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_a_model_of_bytes_is_converted_reported_and_kept(tmp_path, text):
    model, output = llama(tmp_path / "llama"), tmp_path / "out"
    result = run(model, "--text", text, "-o", output, "--layers", "every 2nd", *SMALL, "--json", tmp_path / "r.json")
    assert result.exit_code == 0, result.output
    figures = json.loads((tmp_path / "r.json").read_text())["figures"]
    assert figures["replacement"]["layers"] == [1]
    for state in ("original", "control", "replaced", "matched", "finetuned"):
        assert f"{figures[state]['bits_per_byte']:.3f}" in result.stdout
    sizes = figures["cache_bytes"]["100000"]
    assert 0.5 < sizes["after"] / sizes["before"] < 0.51
    assert load_converted(output / "model")(torch.ones(1, 3, dtype=torch.int64)).logits.shape == (1, 3, 256)
    assert (output / "records.jsonl").exists()
    (output / "model").rename(output / ".partial-model")  # as if killed before the last step
    resumed = run(model, "--text", text, "-o", output, "--layers", "every 2nd", *SMALL)
    assert resumed.exit_code == 0, resumed.output
    assert len((output / "records.jsonl").read_text().splitlines()) == 1
    assert load_converted(output / "model").config.echo_ska_replaced[0]["layers"] == [1]
    assert not (output / ".partial-model").exists()
    again = run(model, "--text", text, "-o", output, *SMALL)
    assert again.exit_code != 0
    assert "nothing is overwritten" in again.output


def test_a_disk_that_is_full_at_the_end_costs_no_training(tmp_path, text, files_up_to):
    output = tmp_path / "out"
    command = (llama(tmp_path / "llama"), "--text", text, "-o", output, *SMALL, "--no-control")
    assert run(*command).exit_code == 0
    weights = (output / "model" / "model.safetensors").read_bytes()
    (output / "model").rename(tmp_path / "aside")  # as if it had not been reached yet
    with files_up_to(len(weights) - 1):
        result = run(*command)
    assert result.exit_code == 1
    said = " ".join(result.stderr.split())
    assert said.startswith(f"The model {output / 'model'} could not be written (")
    assert f"the checkpoints in {output} are kept: make room, or see that" in said
    assert not (output / "model").exists()
    assert not (output / ".partial-model").exists()
    assert run(*command).exit_code == 0
    assert (output / "model" / "model.safetensors").read_bytes() == weights


def test_a_tokenizer_is_used_and_kept(tmp_path, text):
    tokenizer = train_bpe([text], 270)
    model = llama(tmp_path / "llama", len(tokenizer))
    tokenizer.save_pretrained(model)
    result = run(model, "--text", text, "-o", tmp_path / "out", *SMALL, "--no-control", "--copy-every", 0, "--rank", 4)
    assert result.exit_code == 0, result.output
    assert "steps more" not in result.stdout
    assert (tmp_path / "out" / "model" / "tokenizer.json").exists()


def test_what_does_not_fit_is_said_in_one_sentence(tmp_path, text):
    small = llama(tmp_path / "small", 90)
    for model, options, sentence in (
        (tmp_path / "nowhere", (), "it has no config.json"),
        (small, (), "no tokenizer.json"),
        (llama(tmp_path / "llama"), ("--layers", "7"), "layers must name at least one of 0 to 1"),
        (tmp_path / "llama", ("--init", "warm"), "init must be"),
        (tmp_path / "llama", ("--rank", "99"), "between 1 and the head's width 8"),
    ):
        result = run(model, "--text", text, "-o", tmp_path / "out", *SMALL, *options)
        assert result.exit_code != 0
        assert sentence.lower() in " ".join(result.output.split()).lower()
        assert not (tmp_path / "out" / "model").exists()
