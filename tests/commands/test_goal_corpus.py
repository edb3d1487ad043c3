"""`echo-ska train --data`."""

from __future__ import annotations

import dataclasses
import json

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from echo_ska.commands import rare_lines
from echo_ska.commands import train as train_module
from echo_ska.corpus.prepare import _draw
from echo_ska.training import TrainingConfig
from echo_ska.training.checkpoint import list_checkpoints
from echo_ska.training.recipes import RECIPES

TINY = [
    f"--set={field}" for field in ("hidden_size=16", "num_heads=2", "rank=4", "state_size=4", "intermediate_size=16")
]
SHORT = [*TINY, "--steps=4", "--batch-size=2", "--checkpoint-every=2", "--length=16", "--samples=2", "--sample-bytes=5"]


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"Row {n} is é [red]. " * (1 + n % 9)}) + "\n" for n in range(40)))
    return path


@pytest.fixture
def corpus(run, texts, tmp_path):
    """Of bytes."""
    result = run("data", "prepare", texts, "-o", tmp_path / "corpus", "--held-out=0.2")
    assert result.exit_code == 0, result.output
    return tmp_path / "corpus"


@pytest.fixture
def corpus_of_pairs(run, texts, tmp_path):
    """Of byte pairs."""
    (tmp_path / "a.txt").write_text("Row 1 is é [red]. Row 2 is é [red]. " * 20)
    run("tokenizer", "train", tmp_path / "a.txt", "--vocab-size=270", "-o", tmp_path / "tok")
    result = run("data", "prepare", texts, "-o", tmp_path / "pairs", "--tokenizer", tmp_path / "tok", "--held-out=0.2")
    assert result.exit_code == 0, result.output
    return tmp_path / "pairs"


def test_reading_held_out_documents_is_seen(run, corpus, monkeypatch):
    monkeypatch.setattr(rare_lines, "LINE_SECONDS", 0.0)
    result = run("train", "--data", corpus, *SHORT)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("Scoring held-out documents: ") > 2


@pytest.mark.parametrize("which", ["corpus", "corpus_of_pairs"])
def test_a_corpus_is_learnt_scored_and_kept(run, request, tmp_path, which):
    folder, output = request.getfixturevalue(which), tmp_path / "run"
    command = ["train", "--data", folder, *SHORT, "--output", output, "--json", tmp_path / "f.json"]
    result = run(*command)
    assert result.exit_code == 0, result.output
    figures = json.loads((tmp_path / "f.json").read_text())["figures"]
    assert {"nats_per_token", "bits_per_byte", "tokens_scored", "bytes_scored", "state_bytes"} <= figures.keys()
    assert f"{figures['bits_per_byte_before']:.3f} bits per byte before, {figures['bits_per_byte']:.3f} after" in (
        result.stdout
    )
    assert figures["nats_per_token"] < figures["nats_per_token_before"]
    assert (figures["tokens_scored"] == figures["bytes_scored"]) == (which == "corpus")
    assert len(figures["samples"]) == 2
    assert figures["samples"][0]["prompt"].startswith("Row ")
    model, tokenizer = (kind.from_pretrained(output / "model") for kind in (AutoModelForCausalLM, AutoTokenizer))
    assert model.config.vocab_size == len(tokenizer) == (256 if which == "corpus" else 270)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert run("generate", output / "model", "--prompt", "Row ", "--max-new-tokens=3").exit_code == 0


def test_a_stopped_run_goes_on_and_another_corpus_is_refused(run, corpus, corpus_of_pairs, tmp_path, monkeypatch):
    command = ["train", "--data", corpus, *SHORT, "--output", tmp_path / "run"]
    real = train_module.train

    def stopped(model, data, config, **settings):
        class Interrupting:
            def batch(self, step):
                if step == 3:
                    raise KeyboardInterrupt
                return data.batch(step)

            describe = data.describe

        return real(model, Interrupting(), config, **settings)

    monkeypatch.setattr(train_module, "train", stopped)
    assert run(*command).exit_code == 130
    monkeypatch.setattr(train_module, "train", real)
    other = run("train", "--data", corpus_of_pairs, *command[3:])
    assert other.exit_code == 1
    assert "this corpus (--data), but the run in" in other.stderr.lower()
    assert run(*command).exit_code == 0
    assert run(*command[:-1], tmp_path / "whole").exit_code == 0
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("run", "whole")]
    assert weights[0] == weights[1]


def flip(path, place=-1):
    """Change a byte and leave the size; again, and it is as it was."""
    written = bytearray(path.read_bytes())
    written[place] ^= 1
    path.write_bytes(written)


@pytest.mark.parametrize("damaged", ["training/shard-00000.bin", "held-out/shard-00000.documents.bin"])
def test_a_changed_byte_stops_a_training_before_its_first_step(run, corpus, tmp_path, damaged):
    output, command = tmp_path / "run", ["train", "--data", corpus, *SHORT, "--output", tmp_path / "run"]
    flip(corpus / damaged)
    for _ in range(2):  # the folder of a new run, then that of one with checkpoints
        kept = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
        result = run(*command)
        assert result.exit_code == 1
        assert f"is damaged: {damaged} missing or not as written; take another copy of it, or" in result.stderr
        assert result.stderr.count("\n") == 1
        assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == kept
        assert len(list_checkpoints(output)) == (2 if kept else 0)
        flip(corpus / damaged)
        assert run(*command).exit_code == 0
        flip(corpus / damaged)


def test_shards_are_trusted_where_that_is_asked_for(run, refused, corpus):
    flip(corpus / "training" / "shard-00000.bin", 0)
    result = run("train", "--data", corpus, *SHORT, "--no-verify")
    assert result.exit_code == 0, result.output
    refused("--no-verify is for --data", "train", "--task=mqar", "--no-verify")


def test_lines_say_how_much_is_verified(run, corpus, monkeypatch):
    monkeypatch.setattr(rare_lines, "LINE_SECONDS", 0.0)
    result = run("train", "--data", corpus, *SHORT)
    lines = [line for line in result.stdout.splitlines() if line.startswith("Verifying the corpus: ")]
    assert len(lines) == len(list(corpus.rglob("shard-*"))) == 4
    last, whole = lines[-1].removeprefix("Verifying the corpus: ").removesuffix(" are as written.").split(" of ")
    assert last == whole


def test_a_corpus_that_holds_nothing_out_is_learnt_unscored(run, texts, tmp_path):
    assert run("data", "prepare", texts, "-o", tmp_path / "all", "--held-out=0").exit_code == 0
    result = run("train", "--data", tmp_path / "all", *SHORT, "--output", tmp_path / "run", "--json", tmp_path / "f")
    assert result.exit_code == 0, result.output
    assert "none is held out, so the model is not scored." in " ".join(result.stdout.split())
    figures = json.loads((tmp_path / "f").read_text())["figures"]
    assert "loss" in figures
    assert "bits_per_byte" not in figures
    assert (tmp_path / "run" / "model" / "tokenizer.json").exists()


def test_what_cannot_be_scored_is_refused_before_the_first_step(run, tmp_path):
    one = next(letter for letter in "abcdefghijklmnopqrstuvwxyz" if _draw(letter) < 0.1)
    long = [text for text in (f"Document {n:03d} of some words. " for n in range(60)) if _draw(text) >= 0.1]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in [one, *long]))
    assert run("data", "prepare", tmp_path / "rows.jsonl", "-o", tmp_path / "one", "--held-out=0.1").exit_code == 0
    for more in ([], ["--no-verify"]):
        result = run("train", "--data", tmp_path / "one", *SHORT, *more, "--output", tmp_path / "run")
        assert result.exit_code == 1
        assert "No document of the held-out split has two tokens, and text behind the first: there is" in result.stderr
        assert result.stderr.count("\n") == 1
        assert not list(tmp_path.glob("run/*"))


def test_a_recipe_holds_a_corpus_to_its_vocabulary(run, refused, corpus, corpus_of_pairs, texts, tmp_path, monkeypatch):
    bytes_for = "of 32,000 token ids and the tokenizer of {} has 256, which would be another model: prepare a corpus"
    refused(bytes_for.format(corpus), "train", "--recipe=echo-180m", "--data", corpus, *SHORT)
    text = tmp_path / "a.txt"
    text.write_text(texts.read_text())
    refused("learnt byte by byte, has 256", "train", "--recipe=echo-180m", "--text", text, *SHORT)
    refused("`echo-ska recipe show echo-1b` prints", "train", "--recipe=echo-1b", "--data", corpus_of_pairs, *SHORT)
    fitting = dataclasses.replace(RECIPES["echo-50m"], vocab_size=270, training=TrainingConfig(steps=4))
    monkeypatch.setitem(RECIPES, "echo-50m", fitting)
    for recipe, data in (("echo-50m", corpus_of_pairs), ("echo-novel", corpus_of_pairs)):  # the latter is for any
        command = ["train", "--recipe", recipe, "--model=echo-1m", "--strategy=auto", "--precision=fp32"]
        result = run(*command, "--data", data, *SHORT)
        assert result.exit_code == 0, result.output


def test_what_is_refused(run, refused, corpus, texts, tmp_path):
    refused(
        "Give one of --text PATH, --task NAME (as in mqar-grid) and --data DIR",
        "train",
        "--data",
        corpus,
        "--task=mqar",
    )
    refused("--pairs is for --task: a corpus has no such setting", "train", "--data", corpus, "--pairs=2")
    refused("--held-out is for --text", "train", "--data", corpus, "--held-out=x")
    refused("--score-bytes must be at least 2", "train", "--data", corpus, "--score-bytes=1")
    refused("less than one window of 100000", "train", "--data", corpus, "--length=100000")
    refused("name one that `echo-ska data prepare` wrote", "train", "--data", tmp_path / "absent")
    shard = corpus / "training" / "shard-00000.bin"
    shard.write_bytes(shard.read_bytes()[:-1])
    refused("shard-00000.bin has ", "train", "--data", corpus)
