"""`echo-ska convert` on models of a second's size: what it prints and keeps, and what it refuses."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from echo_ska.cli import app
from echo_ska.commands import convert
from echo_ska.convert import load_converted
from echo_ska.models import train_bpe
from echo_ska.training.records import read

SMALL = ("--length", 16, "--batch-size", 2, "--matching-steps", 2, "--finetuning-steps", 2, "--device", "cpu")


def run(*arguments):
    return CliRunner().invoke(app, ["convert", *map(str, arguments)], env={"COLUMNS": "200"})


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("It was the best of times, it was the worst of times. " * 40)
    return path


def llama(folder, vocab_size=256, dtype=torch.float32, **settings):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=vocab_size, bos_token_id=None, eos_token_id=None, **sizes, **settings)
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    return folder


def gpt2(folder, vocab_size=256):
    config = GPT2Config(vocab_size=vocab_size, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder)
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
    (output / "model").rename(output / ".partial-output-model-0123abcd")  # as if killed before the last step
    resumed = run(model, "--text", text, "-o", output, "--layers", "every 2nd", *SMALL)
    assert resumed.exit_code == 0, resumed.output
    assert len((output / "records.jsonl").read_text().splitlines()) == 1
    assert load_converted(output / "model").config.echo_ska_replaced[0]["layers"] == [1]
    assert not list(output.glob(".partial-*"))
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
    assert not list(output.glob(".partial-*"))
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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_trained_in_float32_and_kept_as_it_was(tmp_path, text, dtype):
    figures = {}
    for name, each in (("half", dtype), ("whole", torch.float32)):
        model, output = llama(tmp_path / name, dtype=each), tmp_path / f"{name}-out"
        steps = ("--matching-steps", 20, "--finetuning-steps", 60, "--finetuning-rate", 1e-4)
        result = run(model, "--text", text, "-o", output, *SMALL, *steps, "--no-control", "--json", tmp_path / "r.json")
        assert result.exit_code == 0, result.output
        figures[name] = json.loads((tmp_path / "r.json").read_text())["figures"]
        assert ("as it is kept, in" in result.stdout) == (name == "half")
    for state in ("replaced", "matched", "finetuned"):
        assert figures["half"][state]["loss"] == pytest.approx(figures["whole"][state]["loss"], abs=0.02)
    assert figures["half"]["kept"]["loss"] == pytest.approx(figures["half"]["finetuned"]["loss"], abs=0.02)
    kept = load_converted(tmp_path / "half-out" / "model")
    dtypes = {name: parameter.dtype for name, parameter in kept.named_parameters()}
    assert dtypes["model.layers.1.self_attn.mixer.raw_ridge"] == torch.float32
    assert dtypes["model.layers.1.self_attn.mixer.o_proj.weight"] == dtypes["lm_head.weight"] == dtype
    assert kept.config.dtype == dtype
    sizes = [figures[name]["cache_bytes"]["1000"]["before"] for name in ("half", "whole")]
    assert 2 * sizes[0] == sizes[1]


def test_a_tokenizer_of_other_files_is_used_and_kept(tmp_path, text):
    tokenizer = train_bpe([text], 270)
    parts = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    model = gpt2(tmp_path / "gpt2", len(tokenizer))
    (model / "vocab.json").write_text(json.dumps(parts["vocab"]))
    (model / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, parts["merges"])]))
    (model / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    found = AutoTokenizer.from_pretrained(model)
    result = run(model, "--text", text, "-o", tmp_path / "out", *SMALL, "--no-control", "--json", tmp_path / "r.json")
    assert result.exit_code == 0, result.output
    configuration = json.loads((tmp_path / "r.json").read_text())["configuration"]
    assert configuration["data"]["source"]["tokens"] == pytest.approx(0.9 * len(found(text.read_text()).input_ids), 0.1)
    kept = AutoTokenizer.from_pretrained(tmp_path / "out" / "model")
    assert kept("It was the best").input_ids == found("It was the best").input_ids


@pytest.mark.parametrize("name", ["tokenizer_config.json", "vocab.json", "tokenizer.model", "spiece.model"])
def test_a_tokenizer_that_cannot_be_read_is_not_passed_over(tmp_path, text, name):
    model = gpt2(tmp_path / "gpt2")
    (model / name).write_text('{"tokenizer_class": "GPT2Tokenizer"}' if name == "tokenizer_config.json" else "{}")
    result = run(model, "--text", text, "-o", tmp_path / "out", *SMALL)
    assert result.exit_code == 1
    assert f"The tokenizer in {model} " in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


def test_a_tied_model_that_was_converted_is_converted_further(tmp_path, text):
    model = llama(tmp_path / "llama", tie_word_embeddings=True)
    for layer, output in enumerate((tmp_path / "first", tmp_path / "second")):
        result = run(model, "--text", text, "-o", output, *SMALL, "--layers", layer, "--no-control")
        assert result.exit_code == 0, result.output
        model = output / "model"
    assert [part["layers"] for part in load_converted(model).config.echo_ska_replaced] == [[0], [1]]


def test_weights_that_are_missing_are_named(tmp_path, text):
    model = llama(tmp_path / "llama")
    weights = load_file(model / "model.safetensors")
    lost = sorted(name for name in weights if "layers.1." in name)
    for names in (lost[:1], lost):
        save_file({name: weights[name] for name in weights if name not in names}, model / "model.safetensors")
        result = run(model, "--text", text, "-o", tmp_path / "out", *SMALL)
        assert result.exit_code == 1
        said = " ".join(result.stderr.split())
        assert "not all of this model, missing: " + ", ".join(names[:3]) in said
    assert f"and {len(lost) - 3} more" in said
    assert not (tmp_path / "out").exists()


def test_weights_that_the_configuration_does_not_know_are_named(tmp_path, text):
    model = llama(tmp_path / "llama")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    result = run(model, "--text", text, "-o", tmp_path / "out", *SMALL)
    assert result.exit_code == 1
    assert "do not fit its config.json: the model has no model.layers.1." in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


def test_a_control_that_is_trained_later_is_recorded(tmp_path, text):
    model, output = llama(tmp_path / "llama"), tmp_path / "out"
    assert run(model, "--text", text, "-o", output, *SMALL, "--no-control").exit_code == 0
    (output / "model").rename(output / "aside")
    assert run(model, "--text", text, "-o", output, *SMALL).exit_code == 0
    assert [record.configuration["control"] for record in read(output / "records.jsonl")] == [False, True]


def test_what_would_fail_at_the_end_is_refused_at_the_beginning(tmp_path, text, monkeypatch):
    model, output = llama(tmp_path / "llama"), tmp_path / "out"
    output.mkdir()
    (output / "records.jsonl").write_text("not mine\n")
    monkeypatch.setattr(convert, "load_host", lambda folder: pytest.fail("the model was loaded"))
    told = " ".join(run(model, "--text", text, "-o", output, *SMALL).output.split())
    assert f"Line 1 of {output / 'records.jsonl'} is not a run record" in told
    if not torch.cuda.is_available():
        told = run(model, "--text", text, "-o", tmp_path / "other", *SMALL, "--device", "cuda").output
        assert "Device is cuda, but torch finds no GPU" in " ".join(told.split())


def test_what_does_not_fit_is_said_in_one_sentence(tmp_path, text):
    small, large = llama(tmp_path / "small", 90), llama(tmp_path / "large", 300)
    few = llama(tmp_path / "few", 260)
    train_bpe([text], 270).save_pretrained(few)
    for model, options, sentence in (
        (tmp_path / "nowhere", (), "it has no config.json"),
        (small, (), "no tokenizer.json"),
        (large, (), "a vocabulary of 300 is not the 256 bytes"),
        (few, (), "has 270 tokens, its model only 260"),
        (gpt2(tmp_path / "gpt2"), ("--length", 33), "32 positions: --length must be at most that, got 33"),
        (llama(tmp_path / "llama"), ("--layers", "7"), "layers must name at least one of 0 to 1"),
        (tmp_path / "llama", ("--init", "warm"), "init must be"),
        (tmp_path / "llama", ("--rank", "99"), "between 1 and the head's width 8"),
        (tmp_path / "llama", ("--copy-every", "1"), "--copy-every must be 0, which leaves copying out, or at least 2"),
    ):
        result = run(model, "--text", text, "-o", tmp_path / "out", *SMALL, *options)
        assert result.exit_code != 0
        assert sentence.lower() in " ".join(result.output.split()).lower()
        assert not (tmp_path / "out" / "model").exists()
