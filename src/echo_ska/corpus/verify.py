"""Every byte of a corpus against its checksums."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from echo_ska.corpus.index import SPLITS, CorpusIndex, read_index
from echo_ska.sealed import digest


def verify_shards(directory: str | Path, progress: Callable[[str, int], None] | None = None) -> CorpusIndex:
    """Read every shard of a corpus once and hold it to its checksum in the index, complete or not.

    Args:
        directory: of the corpus.
        progress: called with the name and the bytes of each file that was read.

    Raises:
        ValueError: there is no corpus, or files of it are missing or damaged; three of them are named.
        OSError: a file cannot be read.
    """
    directory = Path(directory)
    index = read_index(directory)
    broken = []
    for split in SPLITS:
        for shard in index.splits[split]:
            for name, expected in zip(shard.files, (shard.sha256, shard.documents_sha256), strict=True):
                path = directory / split / name
                if not path.is_file() or digest(path) != expected:
                    broken.append(f"{split}/{name}")
                elif progress is not None:
                    progress(f"{split}/{name}", path.stat().st_size)
    if broken:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        raise ValueError(
            f"{directory} is damaged: {', '.join(broken[:3])}{more} missing or not as written; take another copy of "
            "it, or prepare the corpus anew in another directory."
        )
    return index


def verify_corpus(directory: str | Path, progress: Callable[[str, int], None] | None = None) -> CorpusIndex:
    """Hold a corpus to its index: its shards (`verify_shards`), its tokenizer, and every token id in it.

    Args:
        directory: of the corpus; it need not be complete yet.
        progress: called with the name and the bytes of each file that was read.

    Raises:
        ValueError: what `verify_shards` raises; the tokenizer is not the corpus's, or has not all the ids in it.
        OSError: a file cannot be read.
    """
    directory = Path(directory)
    index = verify_shards(directory, progress)
    index.open_tokenizer(directory)
    for split in SPLITS:
        for shard in index.splits[split]:
            largest = int(np.memmap(directory / split / shard.files[0], index.dtype, mode="r").max())
            if largest >= index.tokenizer["vocab_size"]:
                raise ValueError(
                    f"{directory / split / shard.files[0]} holds the token id {largest}, and the tokenizer has "
                    f"{index.tokenizer['vocab_size']}: prepare the corpus anew."
                )
    return index
