"""Saved memories come back to the last bit, or are refused: no byte of a sealed file can change unnoticed."""

from __future__ import annotations

import json
import os
import pickle
import random
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from echo_ska.memory import AssociativeMemory
from echo_ska.sealed import disk, read_sealed_file, write_sealed_file

KIND = "associative memory"


def memory_of(pairs=20, **settings):
    generator = torch.Generator().manual_seed(pairs)
    memory = AssociativeMemory(3, 2, **settings)
    memory.write(torch.randn(pairs, 3, generator=generator), torch.randn(pairs, 2, generator=generator))
    return memory


def assert_identical(memory, other):
    assert memory.settings == other.settings
    assert memory.lag_is_exact == other.lag_is_exact
    expected = other.statistics.tensors()
    for name, tensor in memory.statistics.tensors().items():
        assert torch.equal(tensor, expected[name]), name
        assert tensor.dtype == expected[name].dtype


@pytest.fixture
def saved(tmp_path):
    memory_of().save(tmp_path / "some.memory")
    return tmp_path / "some.memory"


def refused(path, contents):
    path.write_bytes(contents)
    try:
        AssociativeMemory.load(path)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("settings", [{}, {"ridge": 0.1, "power": 2, "gain": 1 / 3, "blend": 0.7}])
def test_a_saved_memory_comes_back_to_the_last_bit(tmp_path, settings):
    memory = memory_of(**settings)
    memory.save(tmp_path / "a")
    loaded = AssociativeMemory.load(tmp_path / "a")
    assert_identical(loaded, memory)
    queries = torch.randn(5, 3, dtype=torch.float64)
    assert torch.equal(loaded.read(queries), memory.read(queries))
    for each in (loaded, memory):  # and goes on as if nothing had happened
        each.write(queries, queries[:, :2])
    assert_identical(loaded, memory)


def test_batches_heads_and_forgetting_are_kept(tmp_path):
    memory = AssociativeMemory(3, 2, num_heads=2, batch_size=4)
    keys, values = torch.randn(4, 9, 2, 3), torch.randn(4, 9, 2, 2)
    memory.write(keys, values)
    memory.forget(keys[:, 2:5], values[:, 2:5])
    memory.save(tmp_path / "a")
    loaded = AssociativeMemory.load(tmp_path / "a")
    assert_identical(loaded, memory)
    assert not loaded.lag_is_exact


def test_the_same_memory_gives_the_same_file_and_any_safetensors_reader_opens_it(tmp_path, saved):
    memory_of().save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == saved.read_bytes()
    assert torch.equal(load_file(saved)["gram"], memory_of().statistics.gram)
    with safe_open(saved, "pt") as file:
        seal = json.loads(file.metadata()["echo_ska"])
    assert (seal["kind"], seal["version"], seal["metadata"]["settings"]["rank"]) == (KIND, 1, 3)


def test_a_change_of_any_byte_is_refused(tmp_path, saved):
    whole, numbers = saved.read_bytes(), random.Random(0)
    path = tmp_path / "changed"
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << numbers.randrange(8)
        other = bytearray(whole)
        other[place] = numbers.choice([byte for byte in range(256) if byte != whole[place]])
        for changed in (flipped, other):
            assert refused(path, bytes(changed)), f"byte {place}"
    assert refused(path, whole) is None


def test_a_file_cut_short_or_lengthened_is_refused(tmp_path, saved):
    whole = saved.read_bytes()
    for length in (0, 1, 8, 50, 100, 200, len(whole) // 2, len(whole) - 1):
        assert refused(tmp_path / "cut", whole[:length]), f"{length} bytes"
    assert "do not match its checksum, so it was cut short" in refused(tmp_path / "cut", whole[:-8])
    assert "do not match its checksum" in refused(tmp_path / "long", whole + b"\0")


def test_foreign_files_are_refused_and_never_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("a file was unpickled",))

    path = tmp_path / "foreign"
    save_file({"gram": torch.ones(3, 3)}, path, metadata={"format": "pt"})
    huge_header = struct.pack("<Q", 2**60) + path.read_bytes()[8:]
    for contents in (b"", b"\x89PNG\r\n" * 100, path.read_bytes(), huge_header, pickle.dumps(Trap()), b"{}" * 200):
        assert "is not a file that echo_ska wrote" in refused(path, contents)
    with pytest.raises(FileNotFoundError):
        AssociativeMemory.load(tmp_path / "absent")


def test_another_kind_or_version_is_refused_by_name(tmp_path):
    tensors = memory_of().statistics.tensors()
    write_sealed_file(tmp_path / "kind", tensors, {}, kind="shopping list", version=1)
    write_sealed_file(tmp_path / "version", tensors, {}, kind=KIND, version=99)
    with pytest.raises(ValueError, match="holds a file of kind 'shopping list', not 'associative memory'"):
        AssociativeMemory.load(tmp_path / "kind")
    with pytest.raises(ValueError, match="has format version 99 and this release of echo_ska reads version 1"):
        AssociativeMemory.load(tmp_path / "version")


def test_nothing_is_overwritten_unasked(saved):
    before = saved.read_bytes()
    with pytest.raises(FileExistsError, match=r"some\.memory exists: choose another name, or pass overwrite=True"):
        memory_of(5).save(saved)
    assert saved.read_bytes() == before
    memory_of(5).save(saved, overwrite=True)
    assert AssociativeMemory.load(saved).count == 5
    with pytest.raises(FileNotFoundError, match=r"the folder .* does not exist"):
        memory_of().save(saved.parent / "no" / "folder")


def test_a_write_that_fails_leaves_the_earlier_file_and_no_other(saved):
    resource = pytest.importorskip("resource", reason="needs a limit on the size of files")
    before = saved.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # as on a full disk, some bytes fit
        with pytest.raises(OSError, match="File too large"):
            memory_of(5).save(saved, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_tensors_and_metadata_of_any_kind_come_back(tmp_path):
    tensors = {
        "half": torch.randn(3, 4).bfloat16(),
        "view": torch.arange(12.0).reshape(3, 4)[:, ::2],
        "empty": torch.zeros(0, 5),
        "shared": torch.ones(2),
    }
    tensors["twin"] = tensors["shared"]
    metadata = {"note": 'quotes " and \\ and {"sha256":"' + "0" * 64 + '"}', "ü": [1, None, {"a": 0.1}]}
    write_sealed_file(tmp_path / "a", tensors, metadata, kind="anything", version=3)
    loaded, said = read_sealed_file(tmp_path / "a", kind="anything", version=3)
    assert said == metadata
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor)
        assert loaded[name].dtype == tensor.dtype
    with pytest.raises(ValueError, match="Out of range float"):
        write_sealed_file(tmp_path / "b", {}, {"x": float("nan")}, kind="anything", version=3)


def test_a_file_saved_meanwhile_and_a_dangling_link_stay(tmp_path, monkeypatch):
    path, flush = tmp_path / "a", disk.flush

    def slow(flushed):
        monkeypatch.setattr(disk, "flush", flush)
        memory_of(3).save(path)  # by another process
        flush(flushed)

    monkeypatch.setattr(disk, "flush", slow)
    with pytest.raises(FileExistsError, match="choose another name"):
        memory_of(5).save(path)
    assert AssociativeMemory.load(path).count == 3
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match="choose another name"):
        memory_of(5).save(tmp_path / "link")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a", "link"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_a_file_that_is_replaced_keeps_its_permissions(saved):
    saved.chmod(0o600)
    memory_of(5).save(saved, overwrite=True)
    assert saved.stat().st_mode & 0o777 == 0o600
    assert AssociativeMemory.load(saved).count == 5


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    there, link = tmp_path / "folder" / "there", tmp_path / "link"
    memory_of(3).save(there)
    there.chmod(0o600)
    link.symlink_to(there)
    with pytest.raises(FileExistsError, match="link exists: choose another name"):
        memory_of(5).save(link)
    memory_of(5).save(link, overwrite=True)
    assert os.readlink(link) == str(there)
    assert AssociativeMemory.load(there).count == 5
    assert there.stat().st_mode & 0o777 == 0o600
    there.unlink()
    memory_of(7).save(link, overwrite=True)  # a dangling one: its file is made
    assert os.readlink(link) == str(there)
    assert AssociativeMemory.load(there).count == 7
    assert [each.name for each in (tmp_path / "folder").iterdir()] == ["there"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs")
def test_what_is_no_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="fifo is no regular file and cannot be replaced: name another"):
        memory_of().save(tmp_path / "fifo", overwrite=True)
    (tmp_path / "round").symlink_to(tmp_path / "round")
    with pytest.raises(OSError, match="symbolic links"):
        memory_of().save(tmp_path / "round", overwrite=True)
    (tmp_path / "astray").symlink_to(tmp_path / "absent" / "file")
    with pytest.raises(FileNotFoundError, match=r"the folder .*absent does not exist"):
        memory_of().save(tmp_path / "astray", overwrite=True)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["astray", "fifo", "round"]
    assert (tmp_path / "fifo").is_fifo()
