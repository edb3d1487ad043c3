"""`echo-ska tokenizer train`."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from echo_ska.commands.files import UNFINISHED


def test_a_tokenizer_is_learnt_and_kept(run, tmp_path):
    (tmp_path / "texts").mkdir()
    for name in ("a.txt", "b.md"):
        (tmp_path / "texts" / name).write_text(f"the {name} sat on the mat with the cat " * 30)
    output = tmp_path / "kept"
    result = run("tokenizer", "train", tmp_path / "texts", "--vocab-size", 270, "-o", output)
    assert result.exit_code == 0, result.output
    assert "2 files" in result.stdout
    assert "270 tokens in" in result.stdout
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert len(tokenizer) == 270
    assert tokenizer.decode(tokenizer("the cat 🤖")["input_ids"]) == "the cat 🤖"
    again = run("tokenizer", "train", tmp_path / "texts", "--vocab-size", 3000, "-o", tmp_path / "other")
    assert "the text has no pairs for 3,000" in again.stdout


def test_what_is_refused(refused, tmp_path):
    text = tmp_path / "t.txt"
    text.write_text("some text")
    refused("is not empty", "tokenizer", "train", text, "-o", tmp_path)
    refused("does not exist", "tokenizer", "train", tmp_path / "absent", "-o", tmp_path / "x")


def test_a_full_disk_leaves_nothing(run, tmp_path, files_up_to):
    text, output = tmp_path / "t.txt", tmp_path / "kept"
    text.write_text("the cat sat on the mat " * 30)
    with files_up_to(2000):
        result = run("tokenizer", "train", text, "--vocab-size", 270, "-o", output)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"The tokenizer {output} could not be written (")
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == [text]


@pytest.mark.parametrize("output", [".", "{}", "../kept"])
def test_an_empty_folder_is_filled_or_left_empty(run, refused, tmp_path, files_up_to, monkeypatch, output):
    text, kept = tmp_path / "t.txt", tmp_path / "kept"
    text.write_text("the cat sat on the mat " * 30)
    kept.mkdir()
    monkeypatch.chdir(kept)
    command = ("tokenizer", "train", text, "--vocab-size", 262, "-o", output.format(kept))
    with files_up_to(2000):
        result = run(*command)
    assert result.exit_code == 1
    assert "could not be written (" in result.stderr
    assert not list(kept.iterdir())
    (kept / UNFINISHED / "0123abcd").mkdir(parents=True)  # as if one was killed
    (kept / UNFINISHED / "0123abcd" / "tokenizer.json").write_text("{")
    result = run(*command)
    assert result.exit_code == 0, result.output
    assert len(AutoTokenizer.from_pretrained(kept)) == 262
    assert not (kept / UNFINISHED).exists()
    assert set(tmp_path.iterdir()) == {text, kept}
    refused("is not empty", *command)
