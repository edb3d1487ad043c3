"""The index of a corpus on disk: what it was made from, and each shard's counts and checksums.

    DIR/
        index.json                          everything below, under a checksum of its own
        tokenizer/                          a copy of the tokenizer's files; none for bytes
        training/shard-00000.bin            the tokens of whole documents, each closed by the end token
        training/shard-00000.documents.bin  int64 [documents, 2]: where each begins in the shard, bytes of its text
        held-out/...                        the same

All numbers are little-endian; tokens are unsigned, of the fewest bytes that hold the vocabulary.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from echo_ska.corpus.tokenizer import BYTES, CorpusTokenizer
from echo_ska.sealed import read_description, write_description

KIND, FORMAT = "index", 1
TRAINING, HELD_OUT = "training", "held-out"
SPLITS = (TRAINING, HELD_OUT)
TOKENIZER = "tokenizer"
DOCUMENT = np.dtype("<i8")


@dataclasses.dataclass(frozen=True)
class Shard:
    """One shard of a split: counts (tokens with the end tokens), and the SHA-256 of its two files."""

    name: str
    tokens: int
    documents: int
    text_bytes: int
    sha256: str
    documents_sha256: str

    @property
    def files(self) -> tuple[str, str]:
        """The names of its tokens and of its documents."""
        return f"{self.name}.bin", f"{self.name}.documents.bin"


@dataclasses.dataclass(frozen=True)
class CorpusIndex:
    """What index.json says.

    Attributes:
        settings: what the corpus was asked to be; the same ones go on with it.
        tokenizer: `CorpusTokenizer.describe()`.
        complete: whether every document is in it.
        documents_read: from the sources, those that were skipped included.
        chain: a checksum over the contents of all of these, in order.
        skipped: documents without tokens to learn: "empty", and "not text" (rows with a NUL or half a surrogate
            pair; a text file with a NUL is refused).
        splits: the shards of each split.
        stamps: `Source.stamp()` of each source when it was last read; empty in an index of before there were any.
    """

    settings: dict[str, Any]
    tokenizer: dict[str, Any]
    complete: bool
    documents_read: int
    chain: str
    skipped: dict[str, int]
    splits: dict[str, tuple[Shard, ...]]
    stamps: tuple[str | None, ...] = ()

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the tokens."""
        return token_dtype(self.tokenizer["vocab_size"])

    @property
    def stored_bytes(self) -> int:
        """Of all shards together, tokens and documents."""
        return sum(
            self.total(split, "tokens") * self.dtype.itemsize + 2 * self.total(split, "documents") * DOCUMENT.itemsize
            for split in SPLITS
        )

    def total(self, split: str, count: str) -> int:
        """`tokens`, `documents` or `text_bytes` of a split, all shards together."""
        return sum(getattr(shard, count) for shard in self.splits[split])

    def open_tokenizer(self, directory: Path) -> CorpusTokenizer:
        """The tokenizer that the corpus was made with.

        Raises:
            ValueError: the copy of it beside the shards is missing or not what it was.
        """
        kept = CorpusTokenizer(BYTES if self.tokenizer["sha256"] == BYTES else str(directory / TOKENIZER))
        if kept.describe() != self.tokenizer:
            raise ValueError(
                f"{directory / TOKENIZER} is not the tokenizer that the corpus was made with: put a copy of that there."
            )
        return kept


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest unsigned little-endian type that holds the ids below `vocab_size`."""
    return np.dtype("<u1" if vocab_size <= 1 << 8 else "<u2" if vocab_size <= 1 << 16 else "<u4")


def read_index(directory: str | Path) -> CorpusIndex:
    """The index of the corpus in `directory`, verified by itself, without a look at the shards.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    directory = Path(directory)
    if not (directory / f"{KIND}.json").is_file():
        what = "holds no corpus" if directory.is_dir() else "is no folder"
        raise ValueError(f"{directory} {what} ({KIND}.json): name one that `echo-ska data prepare` wrote.")
    read = {"stamps": ()} | read_description(directory, KIND, FORMAT)
    fields = {field.name: read[field.name] for field in dataclasses.fields(CorpusIndex)}
    fields["stamps"] = tuple(read["stamps"])
    fields["splits"] = {split: tuple(Shard(**shard) for shard in shards) for split, shards in read["splits"].items()}
    return CorpusIndex(**fields)


def write_index(directory: Path, index: CorpusIndex) -> None:
    """Replace the index, at once or not at all.

    Raises:
        OSError: it could not be written; the one before is untouched.
    """
    write_description(directory, {"format": FORMAT, "dtype": index.dtype.str, **dataclasses.asdict(index)}, kind=KIND)
