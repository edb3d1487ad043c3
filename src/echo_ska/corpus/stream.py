"""The tokens of a split as one long row, memory-mapped: what is not asked for is not read, nor kept open."""

from __future__ import annotations

import functools
import hashlib
import mmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echo_ska.corpus.index import DOCUMENT, SPLITS, TRAINING, Shard, read_index


class TokenStream:
    """All documents of a split, one after the other, each closed by the end token.

    Args:
        directory: of the corpus.
        split: "training" or "held-out".

    Attributes:
        index: of the corpus.
        tokens, documents: how many there are.

    Raises:
        ValueError: there is no corpus, it is not complete, the split is empty, or a file has not the size that the
            index says (every byte is read by `verify_shards`, which `echo-ska train --data` calls).
        OSError: a file cannot be read.
    """

    def __init__(self, directory: str | Path, split: str = TRAINING) -> None:
        self.directory, self.split = Path(directory), split
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}.")
        self.index = read_index(directory)
        if not self.index.complete:
            raise ValueError(f"{directory} is not complete: give the `echo-ska data prepare` that began it once more.")
        shards = self.index.splits[split]
        if not shards:
            raise ValueError(f"{directory} has no {split} split: prepare it with --held-out, in another directory.")
        self._folder, self._shards = self.directory.absolute() / split, shards
        for shard in shards:
            for which in (0, 1):
                self._whole(shard, which)
        self._mapped = functools.lru_cache(_files_to_map())(self._map)
        self._token_bounds = _bounds([shard.tokens for shard in shards])
        self._document_bounds = _bounds([shard.documents for shard in shards])
        self.tokens, self.documents = int(self._token_bounds[-1]), int(self._document_bounds[-1])

    def read(self, start: int, count: int) -> NDArray[np.int64]:
        """The tokens start ... start + count - 1, [count].

        Raises:
            ValueError: they are not all there.
        """
        if not 0 <= start <= start + count <= self.tokens:
            raise ValueError(f"There are tokens 0 to {self.tokens - 1}, not {start} to {start + count - 1}.")
        pieces = self._pieces(start, start + count)
        parts = [self._tokens(shard)[begin:end].astype(np.int64) for shard, begin, end in pieces]
        return np.concatenate(parts or [np.empty(0, np.int64)])

    def starts(self, start: int, count: int) -> NDArray[np.int64]:
        """Where among the tokens start ... start + count - 1 documents begin, ascending, counted from `start`."""
        found = [np.empty(0, np.int64)]
        for shard, begin, end in self._pieces(start, start + count):
            begins = self._documents(shard)[:, 0]
            first, last = np.searchsorted(begins, (begin, end))
            found.append(begins[first:last] + (self._token_bounds[shard] - start))
        return np.concatenate(found)

    def document(self, number: int) -> tuple[NDArray[np.int64], int]:
        """The ids of a document without its end token, [T], and the bytes of its text.

        Raises:
            IndexError: there is no such document.
        """
        if not 0 <= number < self.documents:
            raise IndexError(f"There are documents 0 to {self.documents - 1}, not {number}.")
        shard = int(np.searchsorted(self._document_bounds, number, side="right")) - 1
        inside = number - int(self._document_bounds[shard])
        table, tokens = self._documents(shard), self._tokens(shard)
        end = table[inside + 1, 0] if inside + 1 < len(table) else len(tokens)
        return tokens[table[inside, 0] : end - 1].astype(np.int64), int(table[inside, 1])

    def describe(self) -> dict[str, Any]:
        """What tells this split from every other, for JSON; its "sha256" is over the checksums of all shards."""
        sums = "".join(shard.sha256 + shard.documents_sha256 for shard in self.index.splits[self.split])
        return {
            "split": self.split,
            "tokens": self.tokens,
            "documents": self.documents,
            "tokenizer": self.index.tokenizer["sha256"],
            "sha256": hashlib.sha256(sums.encode()).hexdigest(),
        }

    def _pieces(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """The shards that tokens start ... stop - 1 lie in, and where in each."""
        first = int(np.searchsorted(self._token_bounds, start, side="right")) - 1
        pieces = []
        for shard in range(first, len(self._shards)):
            offset = int(self._token_bounds[shard])
            if offset >= stop:
                break
            pieces.append((shard, max(start - offset, 0), min(stop - offset, self._shards[shard].tokens)))
        return pieces

    def _tokens(self, shard: int) -> NDArray[Any]:
        """Of a shard by its number, [tokens]."""
        return self._mapped(shard, 0).view(self.index.dtype)

    def _documents(self, shard: int) -> NDArray[Any]:
        """Where each begins in the shard, and bytes of its text, [documents, 2]."""
        return self._mapped(shard, 1).view(DOCUMENT).reshape(-1, 2)

    def _map(self, shard: int, which: int) -> NDArray[np.uint8]:
        with self._whole(self._shards[shard], which).open("rb") as file:
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)

    def _whole(self, shard: Shard, which: int) -> Path:
        """The path of a shard's tokens (0) or documents (1), if it has the size that the index says."""
        path = self._folder / shard.files[which]
        expected = (shard.tokens * self.index.dtype.itemsize, 2 * shard.documents * DOCUMENT.itemsize)[which]
        size = path.stat().st_size if path.is_file() else -1
        if size != expected:
            what = "is missing" if size < 0 else f"has {size:,} bytes, not the {expected:,} written"
            raise ValueError(
                f"{path} {what}: take another copy of it, or prepare the corpus anew in another directory."
            )
        return path


def _files_to_map() -> int:
    """How many files a stream maps at a time: each holds a descriptor, and it takes an eighth of those allowed."""
    try:
        import resource
    except ImportError:  # on Windows
        return 1024
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1024 if allowed == resource.RLIM_INFINITY else max(2, allowed // 8)


def _bounds(counts: list[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
