"""Sealed files: whole or refused, written at once or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess

import pytest
import torch

from echo_ska import sealed

DESCRIPTION = {"format": 3, "text": "é", "number": 0.1, "nothing": None}


@pytest.fixture
def folder(tmp_path):
    tensors = {"a": torch.arange(6.0).view(2, 3).T, "b": torch.tensor(7), "view": torch.arange(10)[2:4]}
    sealed.write_sealed_folder(tmp_path / "there", tensors, DESCRIPTION, "thing")
    return tmp_path / "there"


def test_what_is_written_is_read(folder):
    description, tensors = sealed.read_sealed_folder(folder, "thing", 3)
    assert {name: description[name] for name in DESCRIPTION} == DESCRIPTION
    assert torch.equal(tensors["a"], torch.arange(6.0).view(2, 3).T)
    assert tensors["b"] == 7
    assert tensors["view"].tolist() == [2, 3]
    tensors["b"].add_(1)  # memory of their own
    assert sealed.read_sealed_folder(folder, "thing", 3)[1]["b"] == 7
    assert [path.name for path in folder.parent.iterdir()] == ["there"]


def test_the_description_has_one_spelling(folder):
    path = folder / "thing.json"
    description = json.loads(path.read_bytes())
    for other in (json.dumps(description), path.read_text() + " ", json.dumps(description, indent=2)):
        path.write_text(other)
        with pytest.raises(ValueError, match=r"is damaged \(thing.json does not match its checksum\)"):
            sealed.read_description(folder, "thing", 3)
    for other in (b"[]", b"null", b"{}", b"\xff", b'{"checksum": 1}'):
        path.write_bytes(other)
        with pytest.raises(ValueError, match="does not match its checksum"):
            sealed.read_description(folder, "thing", 3)


def test_another_format_is_told_from_damage(folder):
    with pytest.raises(ValueError, match="has format 3 and this version of echo-ska reads format 4"):
        sealed.read_sealed_folder(folder, "thing", 4)


def test_what_cannot_be_written_says_why_and_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match=r"could not be written: (No such device or address|No such file)") as caught:
        sealed.write_sealed_folder("/proc/nowhere/there", {}, {}, "thing")
    assert caught.value.errno in (errno.ENOENT, errno.ENXIO)
    with pytest.raises(ValueError, match="JSON"):
        sealed.write_sealed_folder(tmp_path / "there", {}, {"number": float("nan")}, "thing")
    assert list(tmp_path.iterdir()) == []


def test_of_two_writers_one_is_told(folder, monkeypatch):
    monkeypatch.setattr(os.path, "lexists", lambda path: False)  # as if the other one came in between
    with pytest.raises(ValueError, match="exists: save to another path"):
        sealed.write_sealed_folder(folder, {}, {}, "thing")
    assert [path.name for path in folder.parent.iterdir()] == ["there"]
    sealed.read_sealed_folder(folder, "thing", 3)


def test_sums_are_those_of_sha256sum(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    sealed.write_sums(tmp_path, ["one", "two"])
    assert sealed.digest(tmp_path / "one") == hashlib.sha256(b"one").hexdigest()
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path, check=True)
    assert sealed.broken_sum(tmp_path) is None
    assert sealed.broken_sum(tmp_path, ["one", "two"]) is None
    assert sealed.broken_sum(tmp_path, ["one"]) == "SHA256SUMS"
    assert sealed.broken_sum(tmp_path, ["three"]) == "SHA256SUMS"
    (tmp_path / "two").write_text("2")
    assert sealed.broken_sum(tmp_path) == "two"


def test_a_description_alone_is_replaced_at_once_or_not_at_all(tmp_path):
    sealed.write_description(tmp_path, DESCRIPTION, "thing")
    assert DESCRIPTION.items() <= sealed.read_description(tmp_path, "thing", 3).items()
    sealed.write_description(tmp_path, DESCRIPTION | {"number": 2}, "thing")
    assert sealed.read_description(tmp_path, "thing", 3)["number"] == 2
    before = (tmp_path / "thing.json").read_bytes()
    with pytest.raises(ValueError, match="Out of range float"):
        sealed.write_description(tmp_path, {"number": float("nan")}, "thing")
    resource = pytest.importorskip("resource", reason="needs a limit on the size of files")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
        with pytest.raises(
            OSError, match=r"thing.json could not be written \(File too large\): make room, or"
        ) as caught:
            sealed.write_description(tmp_path, DESCRIPTION, "thing")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert (tmp_path / "thing.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["thing.json"]


def test_a_description_behind_a_link_is_replaced_there(tmp_path):
    (tmp_path / "elsewhere").write_text("{}")
    (tmp_path / "thing.json").symlink_to("elsewhere")
    sealed.write_description(tmp_path, DESCRIPTION, "thing")
    assert (tmp_path / "thing.json").is_symlink()
    assert (tmp_path / "elsewhere").read_bytes() == (tmp_path / "thing.json").read_bytes()
    assert DESCRIPTION.items() <= sealed.read_description(tmp_path, "thing", 3).items()


def test_nobody_is_told_to_delete_what_is_not_ours(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "novel.txt").write_text("years of work")
    for path in (other, other / "novel.txt"):
        with pytest.raises(ValueError, match=r"is no saved thing \(it has no thing.json\): name the folder") as caught:
            sealed.read_sealed_folder(path, "thing", 3)
        assert "delete it" not in str(caught.value)
    (folder / "thing.json").rename(other / "thing.json")
    with pytest.raises(ValueError, match=r"is damaged \(state.safetensors is missing\): make it anew elsewhere$"):
        sealed.read_sealed_folder(other, "thing", 3)
    with pytest.raises(ValueError, match=r"is damaged \(thing.json is missing\): delete it and make it anew$"):
        sealed.read_sealed_folder(folder, "thing", 3)
