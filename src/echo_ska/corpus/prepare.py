"""From documents to shards of tokens on disk: killed at any moment, the same call ends with the same bits."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from echo_ska.corpus.documents import Document, Source
from echo_ska.corpus.index import (
    HELD_OUT,
    KIND,
    SPLITS,
    TOKENIZER,
    TRAINING,
    CorpusIndex,
    read_index,
    token_dtype,
    write_index,
)
from echo_ska.corpus.sources import open_source
from echo_ska.corpus.tokenizer import BYTES, CorpusTokenizer
from echo_ska.corpus.writer import OWN, ShardWriter
from echo_ska.sealed import PARTIAL, sole_folder

ENCODED_AT_ONCE = 1 << 20  # characters, about
EMPTY, NOT_TEXT = "empty", "not text"
SHOWN_SOURCES = 3
"""That many are named where a corpus is of others."""


@dataclasses.dataclass(frozen=True)
class CorpusSettings:
    """What determines a corpus beside its sources.

    Attributes:
        tokenizer: "bytes", or the folder of a Hugging Face tokenizer.
        field: which field of a row holds the text.
        held_out: about which part of the documents is held out, chosen by a hash of their contents, so that copies stay
            on one side; 0 holds none out.
        shard_tokens: after how many tokens a shard is closed, at the end of a document.
        max_tokens: stop after the document with which the training split has so many tokens; None takes all.

    Raises:
        ValueError: a number is out of range.
    """

    tokenizer: str = BYTES
    field: str = "text"
    held_out: float = 0.01
    shard_tokens: int = 1 << 26
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out must be a part of the documents, at least 0 and below 1, got {self.held_out}.")
        for name in ("shard_tokens", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")


class Progress(NamedTuple):
    """How far a preparation is: documents read, tokens of both splits, where the last document stands."""

    documents: int
    tokens: int
    origin: str


def prepare_corpus(
    sources: Sequence[str],
    directory: str | Path,
    settings: CorpusSettings | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> CorpusIndex:
    """Write the tokens of all documents into shards in `directory`, which is made.

    Killed at any moment and called again, it goes on after the last whole shard, and every file ends with the bits of
    an undisturbed run. What was read before is read again (not tokenised), to see that it is the same; of a complete
    corpus only where a file of the sources was written to since, or it was not noted when they were.

    Args:
        sources: see `open_source`.
        directory: a new or empty folder, or one that an earlier call with the same sources and settings wrote.
        settings: the default ones if None.
        progress: called now and then.

    Returns:
        The index; `complete` is True.

    Raises:
        ValueError: one sentence: a source, the tokenizer or a setting is not as it must be, `directory` holds something
            else or shards whose index was lost, another process is preparing it, the sources are not what they were,
            or a split is empty.
        OSError: something cannot be read, or a shard cannot be written. The shards before it stay.
    """
    directory, settings = Path(directory), settings or CorpusSettings()
    opened = [open_source(source, settings.field) for source in sources]
    if not opened:
        raise ValueError("There is nothing to prepare: name at least one source.")
    stamps = tuple(source.stamp() for source in opened)
    tokenizer = CorpusTokenizer(settings.tokenizer)
    asked = {
        "sources": [source.describe() for source in opened],
        "field": settings.field,
        "held_out": settings.held_out,
        "shard_tokens": settings.shard_tokens,
        "max_tokens": settings.max_tokens,
    }
    directory.mkdir(parents=True, exist_ok=True)
    with sole_folder(directory, f"another process is preparing {directory}: wait for its end, or name another folder."):
        index = _begun(directory, asked, tokenizer)
        if index.complete and (index.stamps == stamps or not any(stamps)):
            return index
        if index.complete:
            _require_same(_documents(opened), index, directory, settings, progress)
            index = dataclasses.replace(index, stamps=stamps)
            write_index(directory, index)
            return index
        if not any(index.splits.values()):
            tokenizer.require_copy_alike()
        run = _Run(directory, dataclasses.replace(index, stamps=stamps), tokenizer, settings, progress)
        try:
            return run.finish(_documents(opened))
        finally:
            run.discard()


class _Run:
    """One call of `prepare_corpus`, from the last whole shards on."""

    def __init__(
        self,
        directory: Path,
        index: CorpusIndex,
        tokenizer: CorpusTokenizer,
        settings: CorpusSettings,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self.directory, self.index, self.tokenizer, self.settings = directory, index, tokenizer, settings
        self.progress = progress
        self.least_drawn = 1.0
        self.read, self.chain, self.skipped = index.documents_read, index.chain, dict(index.skipped)
        self.tokens = {split: index.total(split, "tokens") for split in SPLITS}
        for left in directory.glob(f"{PARTIAL}{KIND}.json-*"):  # by a process that was killed
            left.unlink()
        dtype = token_dtype(tokenizer.vocab_size)
        self.writers = {split: ShardWriter(directory / split, dtype, len(index.splits[split])) for split in SPLITS}

    def finish(self, documents: Iterator[Document]) -> CorpusIndex:
        """Read all documents and write what is not there yet."""
        self._pass_over(documents)
        for batch in _batches(documents):
            for document, ids in zip(batch, self._encode(batch), strict=True):
                if self._enough():
                    break
                self._append(document, ids)
                if sum(writer.tokens for writer in self.writers.values()) >= self.settings.shard_tokens:
                    self._commit(complete=False)
            self._show(batch[-1].origin)
            if self._enough():
                break
        self._require_both_splits()
        self._commit(complete=True)
        return self.index

    def discard(self) -> None:
        """Delete what belongs to no shard that the index on disk names.

        An index that names none stays: nothing binds to its settings, and what is beside it is known for this
        package's own, whatever could not be deleted.
        """
        named: dict[str, int | None] = dict.fromkeys(SPLITS)
        with contextlib.suppress(ValueError, OSError):  # there is none before the first shard is closed
            named |= {split: len(shards) for split, shards in read_index(self.directory).splits.items()}
        for split, writer in self.writers.items():
            writer.discard(named[split])

    def _pass_over(self, documents: Iterator[Document]) -> None:
        """Read what the shards already hold."""
        chain, origin = _chain(documents, self.index.documents_read, lambda number, origin: self._show(origin))
        if chain != self.index.chain:
            raise ValueError(
                f"The sources of {self.directory} are not what they were when it was begun (before {origin}): give the "
                "same ones to go on, or prepare them in another directory."
            )

    def _encode(self, batch: Sequence[Document]) -> Iterator[Any]:
        """The ids of each document; None for one that is skipped."""
        usable = [document.text for document in batch if _why_not(document.text) is None]
        encoded = iter(self.tokenizer.encode(usable) if usable else [])
        for document in batch:
            yield next(encoded) if _why_not(document.text) is None else None

    def _append(self, document: Document, ids: Any) -> None:
        self.read += 1
        self.chain = _linked(self.chain, document.text)
        if ids is None or len(ids) == 0:  # a tokenizer may drop white space
            self.skipped[_why_not(document.text) or EMPTY] += 1
            return
        drawn = _draw(document.text)
        self.least_drawn = min(self.least_drawn, drawn)
        split = HELD_OUT if drawn < self.settings.held_out else TRAINING
        self.writers[split].append(ids, self.tokenizer.end_token, len(document.text.encode()))
        self.tokens[split] += len(ids) + 1

    def _enough(self) -> bool:
        return self.settings.max_tokens is not None and self.tokens[TRAINING] >= self.settings.max_tokens

    def _commit(self, complete: bool) -> None:
        """Close the shards, then say so in the index: what it does not name does not count."""
        splits = dict(self.index.splits)
        if self.index.documents_read == 0:
            # First, so that shards and a tokenizer without an index are those of a lost one, or of something else.
            write_index(self.directory, self.index)
            self.tokenizer.keep(self.directory / TOKENIZER)
        for split, writer in self.writers.items():
            shard = writer.close()
            splits[split] += () if shard is None else (shard,)
        self.index = dataclasses.replace(
            self.index,
            complete=complete,
            documents_read=self.read,
            chain=self.chain,
            skipped=dict(self.skipped),
            splits=splits,
        )
        write_index(self.directory, self.index)

    def _require_both_splits(self) -> None:
        """Before the last commit, so that a corpus of less than a shard leaves nothing behind."""
        elsewhere = ""
        if any(self.index.splits.values()):
            elsewhere = f" (in another directory, since {self.directory} keeps the shards that were written)"
        if not self.tokens[TRAINING]:
            raise ValueError(
                f"Of {self.read:,} documents none is left to train on ({self.skipped[EMPTY]:,} are empty, "
                f"{self.skipped[NOT_TEXT]:,} not text): give more documents or another --held-out{elsewhere}."
            )
        if self.settings.held_out > 0 and not self.tokens[HELD_OUT]:
            enough = math.floor(100 * self.least_drawn + 1) / 100
            larger = "a larger part" + (f" ({enough} holds some out)" if self.read > 1 and enough < 1 else "")
            raise ValueError(
                f"Of {self.read:,} documents none was held out by --held-out {self.settings.held_out}: choose "
                f"{larger}, give more documents, or hold none out with 0{elsewhere}."
            )

    def _show(self, origin: str) -> None:
        if self.progress is not None:
            self.progress(Progress(self.read, sum(self.tokens.values()), origin))


def _begun(directory: Path, asked: dict[str, Any], tokenizer: CorpusTokenizer) -> CorpusIndex:
    """The index to go on from; that of nothing in a new folder."""
    if not (directory / f"{KIND}.json").exists():
        _require_new(directory)
        return _empty(asked, tokenizer)
    index = read_index(directory)
    if not any(index.splits.values()):  # the first shard was never finished: nothing binds to its settings
        return _empty(asked, tokenizer)
    differing = [name for name in asked if index.settings.get(name) != asked[name]]
    now = [_as_option(name, asked[name]) for name in differing]
    was = [_as_option(name, index.settings.get(name)) for name in differing]
    if index.tokenizer != tokenizer.describe():
        now.append(f"--tokenizer {tokenizer.folder or BYTES}" + _of_sha256(tokenizer.sha256))
        sha256 = str(index.tokenizer["sha256"])
        was.append(f"--tokenizer {BYTES}" if sha256 == BYTES else f"another --tokenizer{_of_sha256(sha256)}")
    if now:
        raise ValueError(
            f"{' and '.join(now)}, but {directory} was {'prepared' if index.complete else 'begun'} with "
            f"{' and '.join(was)}: give the same sources and options to go on with it, or another --output."
        )
    return index


def _as_option(name: str, value: Any) -> str:
    """A setting as the command line gives it; sources with what tells those of one name apart."""
    if name == "sources":
        shown = [_described(source) for source in value[:SHOWN_SOURCES]]
        return f"SOURCE {', '.join(shown)}" + (f" and {len(value) - len(shown)} more" if value[len(shown) :] else "")
    option = f"--{name.replace('_', '-')}"
    return f"no {option}" if value is None else f"{option} {value}"


def _described(source: dict[str, Any]) -> str:
    rest = {name: value for name, value in source.items() if name not in ("kind", "name") and value is not None}
    shown = ", ".join(
        f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}" for name, value in sorted(rest.items())
    )
    return f"{source['name']} ({shown})" if shown else str(source["name"])


def _of_sha256(sha256: str) -> str:
    return "" if sha256 == BYTES else f" (of sha256 {sha256[:12]})"


def _require_same(
    documents: Iterator[Document],
    index: CorpusIndex,
    directory: Path,
    settings: CorpusSettings,
    progress: Callable[[Progress], None] | None,
) -> None:
    """Read all documents of a complete corpus once more; raise ValueError if they are others, or there are more."""
    tokens = {split: index.total(split, "tokens") for split in SPLITS}

    def show(number: int, origin: str) -> None:
        if progress is not None:
            progress(Progress(number, sum(tokens.values()), origin))

    chain, origin = _chain(documents, index.documents_read, show)
    enough = settings.max_tokens is not None and tokens[TRAINING] >= settings.max_tokens
    if chain != index.chain or not (enough or next(documents, None) is None):
        raise ValueError(
            f"The sources of {directory} are not what they were when it was prepared (up to {origin}): prepare them in "
            "another directory."
        )


def _chain(documents: Iterator[Document], count: int, show: Callable[[int, str], None]) -> tuple[str, str]:
    """The checksum over the next `count` documents, or as many as there are, and where the last one stands."""
    chain, origin = "", "their end"
    for number, document in enumerate(itertools.islice(documents, count)):
        chain, origin = _linked(chain, document.text), document.origin
        if number % 1024 == 0:
            show(number, origin)
    return chain, origin


def _require_new(directory: Path) -> None:
    """Raise ValueError if a folder without an index holds more than a process that was killed early leaves there."""
    shards, others = [], []
    for path in sorted(directory.iterdir()):
        if path.name in SPLITS and path.is_dir():
            for inside in sorted(path.iterdir()):
                found = OWN.fullmatch(inside.name)
                if found is None:
                    others.append(inside)
                elif not found[1]:
                    shards.append(inside)
        elif not path.name.startswith(PARTIAL):
            others.append(path)
    if shards:
        raise ValueError(
            f"{directory} holds shards ({shards[0].relative_to(directory)}) and not the {KIND}.json that names them: "
            "put that back, or name a new folder."
        )
    if others:
        raise ValueError(
            f"{directory} is not empty and holds no corpus: name a new folder, or take {others[0]} out of it."
        )


def _empty(asked: dict[str, Any], tokenizer: CorpusTokenizer) -> CorpusIndex:
    return CorpusIndex(
        settings=asked,
        tokenizer=tokenizer.describe(),
        complete=False,
        documents_read=0,
        chain="",
        skipped={EMPTY: 0, NOT_TEXT: 0},
        splits=dict.fromkeys(SPLITS, ()),
    )


def _documents(sources: Sequence[Source]) -> Iterator[Document]:
    for source in sources:
        yield from source.documents()


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Some at a time, since tokenizers work on several cores."""
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= ENCODED_AT_ONCE or len(batch) >= 1024:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _why_not(text: str) -> str | None:
    """Why a document is skipped. NUL is the end token of bytes, and half a surrogate pair is in no UTF-8."""
    if not text.strip():
        return EMPTY
    if "\0" in text:
        return NOT_TEXT
    try:
        text.encode()
    except UnicodeEncodeError:
        return NOT_TEXT
    return None


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _linked(chain: str, text: str) -> str:
    return hashlib.blake2b(chain.encode() + hashlib.blake2b(_raw(text)).digest(), digest_size=16).hexdigest()


def _draw(text: str) -> float:
    """A number from 0 to 1 that follows from the contents alone."""
    drawn = hashlib.blake2b(_raw(text), digest_size=7, person=b"held out").digest()
    return int.from_bytes(drawn, "little") / (1 << 56)
