"""`echo-ska tokenizer train`."""

from __future__ import annotations

from transformers import AutoTokenizer


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
