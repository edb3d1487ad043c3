import json
import shutil

import pytest
import torch

from echo_ska.training.checkpoint import list_checkpoints, read_checkpoint
from echo_ska.training.stored import SHARDS, Stored, checkpoint_files, open_tensors, shard_name

NUMBERS = torch.arange(24.0)
STORED = Stored((4, 6), torch.float32, [(16, NUMBERS[16:]), (0, NUMBERS[:7]), (7, NUMBERS[7:16])])


def test_any_stretch_is_put_together_from_the_pieces():
    for start in range(24):
        for stop in range(start, 25):
            assert torch.equal(STORED.read(start, stop), NUMBERS[start:stop])
    assert torch.equal(STORED.whole(), NUMBERS.view(4, 6))


def test_a_missing_piece_is_noticed():
    with pytest.raises(ValueError, match="lack 9 of 24 numbers"):
        STORED._replace(parts=STORED.parts[:2]).whole()


@pytest.fixture(scope="module")
def sharded(two_processes):
    return list_checkpoints(two_processes.folder / "fsdp")[-1]


def test_shards_hold_every_number_once(sharded, two_processes):
    whole, shards = open_tensors(list_checkpoints(two_processes.folder / "one")[-1]), open_tensors(sharded)
    for kind in ("model", "optimizer"):
        ours, theirs = getattr(whole, kind), getattr(shards, kind)
        assert ours.keys() == theirs.keys()
        for name, stored in ours.items():
            assert (stored.shape, stored.dtype) == (theirs[name].shape, theirs[name].dtype)
            assert sum(part.numel() for _, part in theirs[name].parts) == stored.whole().numel()
            torch.testing.assert_close(theirs[name].whole(), stored.whole(), atol=2e-6, rtol=2e-5)
    described = json.loads((sharded / SHARDS).read_text())
    assert described["model"]["model.norm.weight"]["pieces"] == [[0, 0, 8], [1, 8, 16]]


@pytest.mark.parametrize("harm", ["flip a bit", "cut off", "delete"])
@pytest.mark.parametrize("name", [shard_name(0, 2), shard_name(1, 2), SHARDS, "trainer.json", "SHA256SUMS"])
def test_a_damaged_shard_is_refused(tmp_path, sharded, name, harm):
    folder = shutil.copytree(sharded, tmp_path / sharded.name)
    assert {path.name for path in folder.iterdir()} == {*checkpoint_files(folder), "SHA256SUMS"}
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 0x80
    if harm == "delete":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(data if harm == "flip a bit" else data[:-1])
    with pytest.raises(ValueError, match=r"^The checkpoint file .* is damaged .* delete the folder .*step-000008"):
        read_checkpoint(folder)
