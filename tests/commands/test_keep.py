"""The folder that a command ends with: whole or absent, whoever else writes it and wherever it is stopped."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from echo_ska.commands.keep import whole_folder, whole_model
from echo_ska.sealed import SUMS


def held(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def write(folder, text):
    for name in ("config.json", "model.safetensors", SUMS):
        (folder / name).write_text(text)
    return dict.fromkeys(("config.json", "model.safetensors", SUMS), text)


@pytest.mark.parametrize("exists", [False, True])
def test_of_two_commands_that_write_one_folder_the_slower_is_refused(tmp_path, exists):
    kept = tmp_path / "kept"
    if exists:
        kept.mkdir()
    with (  # noqa: PT012
        pytest.raises(ValueError, match="filled by another command meanwhile: nothing is overwritten"),
        whole_folder(kept, "model") as slower,
    ):
        (slower / "tokenizer.json").write_text("half")
        with whole_folder(kept, "model") as faster:
            wanted = write(faster, "faster")
            (faster / "inner").mkdir()
        write(slower, "slower")
    assert held(kept) == wanted
    assert not list(tmp_path.rglob(".partial*"))


@pytest.mark.parametrize("stopped_at", [0, 1])
def test_a_model_that_is_being_replaced_is_the_one_before_or_the_new_one(tmp_path, monkeypatch, stopped_at):
    kept = tmp_path / "model"
    with whole_model(kept) as folder:
        before = write(folder, "before")
    (kept / "notes").mkdir()
    (kept / "notes" / "own.txt").write_text("the reader's")
    own = {"notes/own.txt": "the reader's"}
    rename, renamed = Path.rename, []

    def stop(path, target):
        if len(renamed) == stopped_at:
            renamed.append(None)  # once
            raise KeyboardInterrupt
        renamed.append(path)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", stop)
    with pytest.raises(KeyboardInterrupt), whole_model(kept, replace=True) as folder:
        write(folder, "after")
    assert held(kept) == before | own
    monkeypatch.undo()
    with whole_model(kept, replace=True) as folder:
        after = write(folder, "after")
    assert held(kept) == after | own
    assert list(tmp_path.iterdir()) == [kept]


def test_an_empty_folder_is_empty_again_where_filling_it_is_stopped(tmp_path, monkeypatch):
    kept, rename = tmp_path / "kept", Path.rename
    kept.mkdir()

    def stop(path, target):
        if path.name == SUMS:  # the last one
            assert set(held(kept)) > {"config.json", "model.safetensors"}
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", stop)
    with pytest.raises(KeyboardInterrupt), whole_folder(kept, "model") as folder:
        write(folder, "new")
    assert not list(kept.iterdir())


def test_what_is_kept_is_on_the_disk_first(tmp_path, monkeypatch):
    flushed, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (flushed.append(descriptor), fsync(descriptor)))
    with whole_folder(tmp_path / "kept", "model") as folder:
        write(folder, "new")
        assert not flushed
    assert len(flushed) == 5  # three files, their folder and the one that it stands in
