"""The tensors of a checkpoint as they lie on disk, whole or in shards; safetensors and JSON alone.

    model.safetensors, optimizer.safetensors            whole: one process, or DDP
    shard-0000-of-0002.safetensors, ..., shards.json    every process its own part: FSDP, DeepSpeed

A shard holds flat pieces: elements [start, stop) of a tensor laid out row by row. `shards.json` says which:

    {"model": {"embed.weight": {"shape": [128, 64], "dtype": "float32", "pieces": [[0, 0, 4096], [1, 4096, 8192]]}},
     "optimizer": {"embed.weight/exp_avg": ...}}         pieces are [shard, start, stop]
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

MODEL, OPTIMIZER, TRAINER, SHARDS = "model.safetensors", "optimizer.safetensors", "trainer.json", "shards.json"


class Piece(NamedTuple):
    """A part of a tensor that this process holds: elements `start` onwards of it, flat, in `values` [n].

    `kind` is "model" or "optimizer"; moments are named "<parameter>/<slot>".
    """

    kind: str
    name: str
    shape: tuple[int, ...]
    start: int
    values: Tensor


class Stored(NamedTuple):
    """A tensor of a checkpoint: `parts` are (start, values [n]) of it, mapped from disk, read when they are used."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    parts: list[tuple[int, Tensor]]

    def read(self, start: int = 0, stop: int | None = None) -> Tensor:
        """A fresh copy of elements [start, stop) [stop - start], on the CPU; without numbers, of all.

        Mapped tensors may be less aligned than fresh ones, and alignment can change the last bit of what is computed.

        Raises:
            ValueError: the shards do not hold all of it.
        """
        stop = math.prod(self.shape) if stop is None else stop
        values, missing = torch.empty(stop - start, dtype=self.dtype), stop - start
        for first, part in self.parts:
            begin, end = max(first, start), min(first + part.numel(), stop)
            if begin < end:
                values[begin - start : end - start] = part[begin - first : end - first]
                missing -= end - begin
        if missing:
            raise ValueError(f"the shards lack {missing} of {stop - start} numbers")
        return values

    def whole(self) -> Tensor:
        """A fresh copy of the tensor."""
        return self.read().view(self.shape)


class StoredTensors(NamedTuple):
    """Model tensors by name, and the optimiser's by "<parameter>/<slot>"."""

    model: dict[str, Stored]
    optimizer: dict[str, Stored]


def shard_name(rank: int, size: int) -> str:
    """The file of process `rank` of `size`."""
    return f"shard-{rank:04d}-of-{size:04d}.safetensors"


def checkpoint_files(folder: Path) -> list[str]:
    """The files that a checkpoint must consist of, SHA256SUMS apart; of a sharded one, as many as its first says."""
    if not (folder / SHARDS).exists():
        return [MODEL, OPTIMIZER, TRAINER]
    sizes = {int(found.group(1)) for path in folder.iterdir() if (found := re.match(r"shard-\d+-of-(\d+)", path.name))}
    return [*(shard_name(rank, max(sizes, default=0)) for rank in range(max(sizes, default=0))), SHARDS, TRAINER]


def open_tensors(folder: Path) -> StoredTensors:
    """The tensors of a verified checkpoint."""
    if not (folder / SHARDS).exists():
        return StoredTensors(*(_whole_file(folder / name) for name in (MODEL, OPTIMIZER)))
    described = json.loads((folder / SHARDS).read_text(encoding="utf-8"))
    files = [load_file(folder / name) for name in checkpoint_files(folder) if name not in (SHARDS, TRAINER)]

    def tensors(kind: str) -> dict[str, Stored]:
        return {
            name: Stored(
                tuple(entry["shape"]),
                getattr(torch, entry["dtype"]),
                [(start, files[shard][f"{kind}/{name}"]) for shard, start, _ in entry["pieces"]],
            )
            for name, entry in described[kind].items()
        }

    return StoredTensors(tensors("model"), tensors("optimizer"))


def describe_pieces(by_process: Iterable[Iterable[tuple[str, str, tuple[int, ...], str, int, int]]]) -> dict[str, Any]:
    """The contents of `shards.json`.

    Args:
        by_process: for each process in turn, (kind, name, shape, dtype, start, stop) of its pieces.
    """
    described: dict[str, Any] = {"model": {}, "optimizer": {}}
    for rank, pieces in enumerate(by_process):
        for kind, name, shape, dtype, start, stop in pieces:
            entry = described[kind].setdefault(name, {"shape": list(shape), "dtype": dtype, "pieces": []})
            entry["pieces"].append([rank, start, stop])
    return described


def _whole_file(path: Path) -> dict[str, Stored]:
    return {
        name: Stored(tuple(tensor.shape), tensor.dtype, [(0, tensor.reshape(-1))])
        for name, tensor in load_file(path).items()
    }
