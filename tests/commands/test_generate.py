"""`echo-ska generate`: what it writes is what the model says, and what it counts is what was read."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch

from echo_ska.evaluation.sampling import printable
from echo_ska.models import EchoConfig, EchoForCausalLM, byte_tokenizer


def greedy(folder, text, tokens):
    model = EchoForCausalLM.from_pretrained(folder)
    ids = torch.tensor([list(text.encode())])
    out = model.generate(ids, max_new_tokens=tokens, do_sample=False, eos_token_id=0, pad_token_id=0)
    return [token for token in out[0, ids.shape[1] :].tolist() if token != 0]


def test_greedy_is_what_the_model_says(run, model_folder, tmp_path):
    figures = tmp_path / "f.json"
    result = run(
        *("generate", model_folder, "--prompt", "Héllo", "--temperature=0", "--max-new-tokens=12", "--json", figures)
    )
    assert result.exit_code == 0, result.output
    wanted = byte_tokenizer().decode(greedy(model_folder, "Héllo", 12))
    written = json.loads(figures.read_text())
    assert written["text"] == wanted
    assert result.stdout == printable(wanted) + "\n"
    assert written["tokens_read"] == len("Héllo".encode())
    assert written["tokens_written"] <= 12
    assert set(written["state_bytes"]) == {"mamba2", "ska", "full_attention"}
    model = EchoForCausalLM.from_pretrained(model_folder)
    last_read = written["tokens_read"] + written["tokens_written"] - 1
    assert sum(written["state_bytes"].values()) == model.state_bytes(last_read)
    for words in ("tokens read", "tokens written", "time per token", "state, SKA", "state, Mamba-2"):
        assert words in result.stderr


def test_a_context_is_read_before_the_prompt(run, model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("echo_ska.models.tokenization.text_blocks.__defaults__", (50,))
    context = tmp_path / "context.txt"
    context.write_text("The cat sat on the mät.\r\n" * 20, encoding="utf-8", newline="")
    figures = tmp_path / "f.json"
    options = ("--temperature=0", "--max-new-tokens=8", "--json", figures)
    assert run("generate", model_folder, "--prompt", "Who?", "--context", context, *options).exit_code == 0
    written = json.loads(figures.read_text())
    whole = "The cat sat on the mät.\n" * 20 + "Who?"
    assert written["tokens_read"] == len(whole.encode())
    assert written["text"] == byte_tokenizer().decode(greedy(model_folder, whole, 8))


def test_the_seed_decides_and_standard_input_is_a_prompt(run, model_folder):
    def written(seed, prompt, **options):
        command = ("generate", model_folder, "--max-new-tokens=30", "--temperature=1", f"--seed={seed}")
        result = run(*command, "--prompt", prompt, **options)
        assert result.exit_code == 0, result.output
        return result.stdout

    first = written(1, "Hello\n")
    assert written(1, "-", input="Hello\n") == first
    assert written(2, "Hello\n") != first


def test_what_is_refused(refused, model_folder, tmp_path):
    ask = ("--prompt", "x")
    refused("There is no folder", "generate", tmp_path / "absent", *ask)
    (tmp_path / "file").touch()
    refused("is a file", "generate", tmp_path / "file", *ask)
    refused("it has no config.json", "generate", tmp_path, *ask)
    run_folder = tmp_path / "run"
    shutil.copytree(model_folder, run_folder / "model")
    refused(f"name {run_folder / 'model'}", "generate", run_folder, *ask)
    (run_folder / "model" / "tokenizer.json").unlink()
    refused("has no tokenizer", "generate", run_folder / "model", *ask)
    (run_folder / "model" / "tokenizer.json").write_text("{}")
    refused("cannot be read", "generate", run_folder / "model", *ask)
    weights = run_folder / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    refused("weights", "generate", run_folder / "model", *ask)
    weights.unlink()
    refused("model.safetensors", "generate", run_folder / "model", *ask)
    (run_folder / "model" / "config.json").write_text('{"model_type": "llama"}')
    refused("of type llama", "generate", run_folder / "model", *ask)
    (run_folder / "model" / "config.json").write_text("[")
    refused("does not describe a model", "generate", run_folder / "model", *ask)
    refused("The prompt is empty", "generate", model_folder, "--prompt", "")
    refused("The prompt is empty", "generate", model_folder, "--prompt", "-", input="")
    refused("not UTF-8", "generate", model_folder, "--prompt", "-", input=b"\xff")
    refused("not UTF-8", "generate", model_folder, "--prompt", "a\udcff")
    refused("is not a file", "generate", model_folder, *ask, "--context", tmp_path / "absent.txt")
    refused("Temperature must be", "generate", model_folder, *ask, "--temperature=-1")
    refused("Device must be", "generate", model_folder, *ask, "--device=abacus")
    (tmp_path / "latin.txt").write_bytes(b"abc\xff")
    refused("byte 3 is 0xff", "generate", model_folder, *ask, "--context", tmp_path / "latin.txt")


@pytest.mark.parametrize("kind", ["vocabulary", "paper"])
def test_models_that_cannot_write(refused, tmp_path, kind):
    fields = {"layer_types": ["mamba2", "ska-paper", "mamba2"]} if kind == "paper" else {"vocab_size": 100}
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_heads": 2, "rank": 4, "state_size": 4}
    EchoForCausalLM(EchoConfig(**sizes, **fields)).save_pretrained(tmp_path / "m")
    byte_tokenizer().save_pretrained(tmp_path / "m")
    words = "keeps no state" if kind == "paper" else "has 256 tokens, its model only 100"
    refused(words, "generate", tmp_path / "m", "--prompt", "x")


def test_weights_of_another_model_are_refused(refused, model_folder, tmp_path):
    shutil.copytree(model_folder, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config["feed_forward"] = "koopman-gated"
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    refused("is missing", "generate", tmp_path / "m", "--prompt", "x")


def test_a_closed_standard_output_is_no_error(model_folder, tmp_path):
    code = (
        "import sys; sys.stdout = None\n"  # as Python has it after `>&-`
        "from pathlib import Path\n"
        "from echo_ska.commands import generate as command\n"
        "request = command.GenerateRequest(Path(sys.argv[1]), 'x', None, None, 3, 0.0, None, 0, 'cpu')\n"
        "command.generate(request, Path(sys.argv[2]))"
    )
    figures = tmp_path / "f.json"
    subprocess.run([sys.executable, "-c", code, str(model_folder), str(figures)], check=True, capture_output=True)
    assert json.loads(figures.read_text())["tokens_written"] <= 3


def test_a_seed_out_of_range_is_refused_before_the_prompt_is_read(refused, model_folder):
    refused("Seed must be at least", "generate", model_folder, "--prompt", "x", "--seed", "99999999999999999999")
