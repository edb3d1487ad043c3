"""`echo-ska context` and `generate --state`: what is read once is gone on from as if it had just been read."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime

import pytest
import torch

from echo_ska.memory import ContextState, ContextStore, model_fingerprint
from echo_ska.models import EchoConfig, EchoForCausalLM, byte_tokenizer

TEXT = "The cat sat on the mät.\r\n" * 20
READ = "The cat sat on the mät.\n" * 20
GREEDY = ("--temperature=0", "--max-new-tokens=8")


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8", newline="")
    return path


@pytest.fixture
def state(run, model_folder, text, tmp_path):
    folder = tmp_path / "state"
    assert run("context", "read", model_folder, text, "-o", folder).exit_code == 0
    return folder


def test_a_text_is_read_and_gone_on_from(run, model_folder, text, tmp_path, monkeypatch):
    monkeypatch.setattr("echo_ska.models.tokenization.text_blocks.__defaults__", (50,))
    figures, state = tmp_path / "f.json", tmp_path / "state"
    result = run("context", "read", model_folder, text, "-o", state, "--json", figures)
    assert result.exit_code == 0, result.output
    model = EchoForCausalLM.from_pretrained(model_folder)
    written, kept = json.loads(figures.read_text()), ContextState.load(state, model)
    count = len(READ.encode())
    assert written["tokens"] == kept.tokens == count
    assert f"{count:,} tokens in" in result.stdout
    assert written["bytes_by_kind"] == kept.bytes_by_kind()
    assert set(written["bytes_by_kind"]) == {"ska", "mamba2", "attention"}
    assert written["bytes"] == sum(written["bytes_by_kind"].values()) == model.state_bytes(count - 1)
    assert written["bytes_on_disk"] == sum(path.stat().st_size for path in state.iterdir())
    assert 0 < written["bytes_on_disk"] - sum(written["stored_bytes_by_kind"].values()) < 10_000  # headers
    assert written["stored_bytes_by_kind"]["ska"] < written["bytes_by_kind"]["ska"]  # triangles of Gram matrices
    assert written["stored_bytes_by_kind"]["mamba2"] == written["bytes_by_kind"]["mamba2"]
    for words in ("SKA", "Mamba-2", "attention", "in memory", "on disk"):
        assert words in result.stdout

    def generated(*options):
        assert run("generate", model_folder, *options, *GREEDY, "--json", figures).exit_code == 0
        return json.loads(figures.read_text())

    anew, onward = (
        generated("--prompt=Who?", "--context", text),
        generated("--prompt=Who?", "--state", state),
    )
    assert onward["text"] == anew["text"]
    assert onward["state_bytes"] == anew["state_bytes"]
    assert (anew["tokens_of_state"], anew["tokens_read"]) == (0, count + 4)
    assert (onward["tokens_of_state"], onward["tokens_read"]) == (count, 4)
    assert generated("--prompt=", "--state", state)["text"] == byte_tokenizer().decode(
        [
            token
            for token in kept.generate(model, max_new_tokens=8, do_sample=False, eos_token_id=0)[0].tolist()
            if token
        ]
    )


def test_a_context_is_shown_and_damage_is_found(run, refused, model_folder, state, tmp_path):
    figures = tmp_path / "f.json"
    result = run("context", "show", state, "--json", figures)
    assert result.exit_code == 0, result.output
    shown = json.loads(figures.read_text())
    assert shown["whole"]
    assert shown["tokens"] == len(READ.encode())
    assert shown["fingerprint"] == model_fingerprint(EchoForCausalLM.from_pretrained(model_folder))
    assert "whole" in result.stdout
    assert shown["fingerprint"][:12] in result.stdout

    tensors = state / "state.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"x")
    result = run("context", "show", state, "--json", figures)
    assert result.exit_code == 1
    assert "does not match its checksum" in result.stderr
    assert "damaged" in result.stdout
    assert not json.loads(figures.read_text())["whole"]
    assert json.loads(figures.read_text())["tokens"] == shown["tokens"]
    refused("does not match its checksum", "generate", model_folder, "--prompt=x", "--state", state)
    tensors.unlink()
    assert "is missing" in run("context", "show", state).stderr
    (state / "context.json").write_text("{}")
    refused("context.json does not match", "context", "show", state)
    refused("There is no context at", "context", "show", tmp_path / "absent")


def test_a_store_is_listed(run, refused, model_folder, tmp_path):
    model = EchoForCausalLM.from_pretrained(model_folder)
    store, figures = ContextStore(tmp_path / "store"), tmp_path / "f.json"
    for count in (5, 3):
        store.read(model, torch.arange(1, 1 + count))
    store.find(model, list(range(1, 6)))  # the longer one was used last
    result = run("context", "list", tmp_path / "store", "--json", figures)
    assert result.exit_code == 0, result.output
    listed = json.loads(figures.read_text())
    assert [row["tokens"] for row in listed["contexts"]] == [5, 3]
    assert listed["total"] == {"contexts": 2, "bytes": store.nbytes}
    assert {row["fingerprint"] for row in listed["contexts"]} == {model_fingerprint(model)}
    ages = [datetime.now(UTC) - datetime.fromisoformat(row["last_used"]) for row in listed["contexts"]]
    assert all(-1 <= age.total_seconds() < 600 for age in ages)
    assert "2 contexts" in result.stdout
    assert listed["contexts"][0]["name"][:12] in result.stdout

    refused("is no store of contexts", "context", "list", tmp_path / "absent")
    assert not (tmp_path / "absent").exists()
    refused("is no store of contexts", "context", "list", model_folder)
    ContextStore(tmp_path / "empty")
    assert "0 contexts" in run("context", "list", tmp_path / "empty").stdout


def test_listing_deletes_nothing(run, refused, tmp_path):
    mine = tmp_path / "mine"
    for name in ("states/README.md", "work/thesis/ch1.txt"):
        (mine / name).parent.mkdir(parents=True)
        (mine / name).write_text("precious")
    before = sorted(mine.rglob("*"))
    refused("is no store of contexts", "context", "list", mine)
    assert sorted(mine.rglob("*")) == before
    ContextStore(tmp_path / "store")
    left = tmp_path / "store" / "work" / f"deleted-{'0' * 16}"
    left.mkdir()
    assert "0 contexts" in run("context", "list", tmp_path / "store").stdout
    assert left.is_dir()


def test_what_is_refused(refused, model_folder, state, text, tmp_path):
    new = ("-o", tmp_path / "new")
    refused("exists: name a new folder", "context", "read", model_folder, text, "-o", state)
    refused("There is no folder", "context", "read", tmp_path / "absent", text, *new)
    refused("is not a file", "context", "read", model_folder, tmp_path / "absent", *new)
    (tmp_path / "empty.txt").touch()
    refused("there is nothing to read", "context", "read", model_folder, tmp_path / "empty.txt", *new)
    (tmp_path / "latin.txt").write_bytes(b"abc\xff")
    refused("byte 3 is 0xff", "context", "read", model_folder, tmp_path / "latin.txt", *new)
    assert not (tmp_path / "new").exists()
    both = ("--state", state, "--context", text)
    refused("Give --context or --state", "generate", model_folder, "--prompt=x", *both)
    refused("There is no context at", "generate", model_folder, "--prompt=x", "--state", tmp_path / "absent")
    refused("The prompt is empty", "generate", model_folder, "--prompt=", "--context", text)


def test_a_context_of_another_model_is_refused(refused, model_folder, state, tmp_path):
    config = EchoConfig.from_pretrained(model_folder)
    other = tmp_path / "other"
    shutil.copytree(model_folder, other)
    EchoForCausalLM(config).save_pretrained(other)
    refused("was read by another model: the same configuration", "generate", other, "--prompt=x", "--state", state)
    config.rank = 4
    EchoForCausalLM(config).save_pretrained(other)
    refused("rank 8 there, 4 here", "generate", other, "--prompt=x", "--state", state)
