import hashlib

import numpy as np
import pytest

from echo_ska.corpus.writer import ShardWriter


def test_documents_are_closed_and_placed(tmp_path):
    writer = ShardWriter(tmp_path / "s", np.dtype("<u2"), 0)
    assert writer.close() is None
    writer.append(np.array([5, 300], np.uint32), 1, 7)
    writer.append(np.array([9], np.uint8), 1, 2)
    assert writer.tokens == 5
    assert [path.name for path in (tmp_path / "s").iterdir()] == [".partial-shard-00000.bin"]
    shard = writer.close()
    assert (shard.name, shard.tokens, shard.documents, shard.text_bytes) == ("shard-00000", 5, 2, 9)
    tokens, documents = ((tmp_path / "s" / name).read_bytes() for name in shard.files)
    assert np.frombuffer(tokens, "<u2").tolist() == [5, 300, 1, 9, 1]
    assert np.frombuffer(documents, "<i8").reshape(-1, 2).tolist() == [[0, 7], [3, 2]]
    assert shard.sha256 == hashlib.sha256(tokens).hexdigest()
    assert shard.documents_sha256 == hashlib.sha256(documents).hexdigest()
    writer.append(np.array([2]), 1, 1)
    assert writer.close().name == "shard-00001"


def test_what_was_left_by_a_killed_run_goes_and_nothing_else(tmp_path):
    for name in (
        "shard-00000.bin",
        "shard-00001.bin",
        "shard-00001.documents.bin",
        ".partial-shard-00001.bin",
        "shard-x.bin",
        "mine.bin",
        "shard-00009.bin.old",
    ):
        (tmp_path / name).touch()
    ShardWriter(tmp_path, np.dtype("<u1"), 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "mine.bin",
        "shard-00000.bin",
        "shard-00009.bin.old",
        "shard-x.bin",
    ]


def test_discarding(tmp_path):
    writer = ShardWriter(tmp_path / "s", np.dtype("<u1"), 0)
    writer.append(np.array([2]), 0, 1)
    writer.discard()
    assert not (tmp_path / "s").exists()
    writer.append(np.array([3]), 0, 1)
    assert writer.close().tokens == 2


def test_discarding_shards_that_do_not_count(tmp_path):
    writer = ShardWriter(tmp_path / "s", np.dtype("<u1"), 0)
    for _ in range(3):
        writer.append(np.array([2]), 0, 1)
        writer.close()
    writer.append(np.array([2]), 0, 1)
    writer.discard(1)
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["shard-00000.bin", "shard-00000.documents.bin"]
    writer.append(np.array([3]), 0, 1)
    assert writer.close().name == "shard-00001"
    writer.discard(0)
    assert not (tmp_path / "s").exists()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "s").write_text("a file")
    writer = ShardWriter(tmp_path / "s", np.dtype("<u1"), 0)
    with pytest.raises(OSError, match=r"shard-00000.bin could not be written \(File exists\): mend that and give the"):
        writer.append(np.array([2]), 0, 1)
