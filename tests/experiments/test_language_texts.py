"""Folders of texts: what is found in them, and what is refused before anything is trained."""

from __future__ import annotations

import json

import pytest
from made_up import made_up
from text_folder import write_texts

from echo_ska.experiments.language_texts import TextFolder
from echo_ska.training import TextData


def test_parts_files_and_checksums(tmp_path):
    texts = TextFolder.read(write_texts(tmp_path / "texts"), "x")
    parts = texts.parts
    assert {name: part["files"] for name, part in parts.items()} == {
        "train": ["a.txt", "b.txt"],
        "valid": ["v.txt"],
        "test": ["x.txt", "y.txt"],
        "wikitext2": ["test.txt"],  # of a published data set, the test alone
    }
    assert parts["test"]["bytes"] == [700, 700]
    assert texts.scored == ["test", "wikitext2"]
    assert texts.describe_training(4, 16, 2) == TextData(texts.load("train"), 4, 16, 2).describe()
    record = made_up("x", {"texts": json.loads(json.dumps(parts))}, {})
    known = TextFolder.of_record(record)
    assert known.parts == parts
    with pytest.raises(ValueError, match="give their folder by --text"):
        known.load("test")


def test_what_is_refused(tmp_path):
    with pytest.raises(ValueError, match="x learns from texts that are not part of it: give --text a folder with"):
        TextFolder.read(None, "x")
    folder = write_texts(tmp_path / "texts")
    texts = TextFolder.read(folder, "x")
    (folder / "test" / "x.txt").write_text("another text")
    with pytest.raises(ValueError, match="have changed since this run began"):
        texts.load("test")
    (folder / "test" / "x.txt").unlink()
    (folder / "test" / "y.txt").unlink()
    with pytest.raises(ValueError, match="holds no text"):
        TextFolder.read(folder, "x")
    (folder / "test").rmdir()
    with pytest.raises(ValueError, match="has no folder test"):
        TextFolder.read(folder, "x")
