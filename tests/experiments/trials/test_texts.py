"""Folders of texts: what is found in them, and what is refused before anything is trained."""

from __future__ import annotations

import pytest
from made_up import made_up
from text_folder import write_texts

from echo_ska.experiments.trials.texts import TextFolder
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


def test_records_tell_of_their_texts(tmp_path):
    """A try tells of valid/, a final run of what it scored; together they are the folder."""
    texts = TextFolder.read(write_texts(tmp_path / "texts"), "x")

    def record(scored, **changed):
        data = texts.describe_training(4, 16, 2) | changed
        return made_up("x", {"data": data, "texts": {part: texts.parts[part] for part in scored}}, {})

    tried, final = record(["valid"]), record(["test", "wikitext2"])
    of_other_texts = record(["test"], blake2b="other")
    known = TextFolder.of_records([of_other_texts, tried, record(["test"]), final])
    assert known.scored == texts.scored
    assert known.describe_training(4, 16, 2) == texts.describe_training(4, 16, 2)
    assert {part: known.parts[part] for part in known.parts if part != "train"} == {
        part: texts.parts[part] for part in texts.parts if part != "train"
    }
    assert TextFolder.of_records([final, record(["test"])]).scored == ["test"]  # the newest, not all that ever was
    assert TextFolder.of_records([tried]).scored == []
    with pytest.raises(ValueError, match="give their folder by --text"):
        known.load("test")


@pytest.mark.parametrize("copy", ["valid/copy.txt", "test/copy.txt", "more/copy.txt"])
def test_a_text_in_two_parts_is_refused(tmp_path, copy):
    folder = write_texts(tmp_path / "texts")
    (folder / copy).parent.mkdir(exist_ok=True)
    (folder / copy).write_bytes((folder / "train" / "b.txt").read_bytes())
    with pytest.raises(ValueError, match=rf"^{copy} and train/b.txt are the same text"):
        TextFolder.read(folder, "x")
    (folder / copy).unlink()
    (folder / "train" / "copy.txt").write_bytes((folder / "train" / "b.txt").read_bytes())
    TextFolder.read(folder, "x")  # twice in one part is a matter of taste


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
