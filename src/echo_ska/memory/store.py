"""A folder of contexts, found again by their tokens: what was read once is not read again."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import secrets
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from echo_ska.memory.context import FORMAT, KIND, ContextState, Progress
from echo_ska.memory.fingerprint import model_fingerprint
from echo_ska.memory.index import ContextIndex, DamagedIndexError, StoredContext
from echo_ska.memory.token_ids import prefix_hashes, token_ids
from echo_ska.models import EchoForCausalLM
from echo_ska.models.segments import SEGMENT_LENGTH
from echo_ska.sealed import flush, locked_folder, read_description, read_sealed_folder

logger = logging.getLogger(__name__)

INDEX, STATES, WORK = "index.sqlite3", "states", "work"
INDEX_NAMES = {f"{INDEX}{state}{suffix}" for state in ("", ".damaged") for suffix in ("", "-journal")}
OWN = {STATES: re.compile(r"[0-9a-f]{40}"), WORK: re.compile(r"(written|deleted)-[0-9a-f]{16}")}
"""The names in the two folders that a store itself gives: nothing of another name is ever deleted."""
ABANDONED_SECONDS = 86_400.0
"""Where folders cannot be locked, one that is being written counts as left behind after a day."""

Stored = list[StoredContext]
Answer = TypeVar("Answer")


class ContextStore:
    """Contexts on disk, for any number of models, threads and processes.

        folder/index.sqlite3    which contexts there are; made anew from the folders below if it is lost or damaged
        folder/states/<name>/   one context each, as `ContextState.save` writes it, named after its model and tokens
        folder/work/            what is being written or deleted

    Files of other names are left alone, and a folder that holds such files and no index is refused.

    What `put` has returned is on disk, whatever happens to the process then. A context is looked up, verified by its
    checksums, and only then used; a damaged one is reported by a warning, removed, and read anew.

    Args:
        folder: made if it is not there.
        max_bytes: of all files together; beyond it, the contexts least recently used are deleted. None keeps all.
        sweep: whether to `sweep` at once.

    Raises:
        ValueError: max_bytes below 1, or a folder of something else.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: str | Path, max_bytes: int | None = None, *, sweep: bool = True) -> None:
        if max_bytes is not None and max_bytes < 1:
            raise ValueError(f"max_bytes must be at least 1, or None, got {max_bytes}")
        self.folder, self.max_bytes = Path(folder), max_bytes
        if self.folder.is_dir() and not (self.folder / INDEX).is_file():
            foreign = _foreign(self.folder)
            if foreign is not None:
                raise ValueError(
                    f"{self.folder} is not empty and holds no store of contexts ({foreign.relative_to(self.folder)} is "
                    "none of its files): name a new folder"
                )
        for name in (STATES, WORK):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._index = ContextIndex(self.folder / INDEX)
        try:
            self._open()
        except DamagedIndexError as error:
            self._replace_index(error)
        if sweep:
            self.sweep()

    def put(self, state: ContextState) -> StoredContext:
        """Keep a context; one of the same model and tokens is kept once.

        Raises:
            ValueError: it alone is larger than `max_bytes`.
            OSError: it cannot be written (ENOSPC: the disk is full); what was stored before is as it was.
        """
        name = _name(state.fingerprint, state.tokens, state.token_hash)
        try:
            return self._mended(lambda: self._put(name, state))
        except OSError as error:
            reason = error.strerror or str(error)
            raise OSError(
                error.errno,
                f"the context of {state.tokens:,} tokens was not stored ({reason}); what {self.folder} held before is "
                "as it was: free space, or remove() contexts",
            ) from error

    def find(self, model: EchoForCausalLM, input_ids: Tensor | Sequence[int]) -> tuple[ContextState, int] | None:
        """The longest stored context that these tokens begin with, and its number of tokens; None if there is none.

        Args:
            model: only contexts that it has read count.
            input_ids: [T] or [1, T].
        """
        ids = token_ids(input_ids, model.config.vocab_size)
        return self._mended(lambda: self._find(model, ids))

    def read(
        self,
        model: EchoForCausalLM,
        input_ids: Tensor | Sequence[int],
        *,
        segment_length: int = SEGMENT_LENGTH,
        progress: Progress | None = None,
    ) -> ContextState:
        """The context of these tokens: what is stored of them is not read again, and the result is stored.

        If it cannot be stored (a full disk, say), it is returned all the same, with a warning in the log.
        Arguments are those of `ContextState.read`; `progress` counts the tokens that are read.
        """
        ids = token_ids(input_ids, model.config.vocab_size)
        parent, known = self.find(model, ids) or (None, 0)
        if parent is not None and known == len(ids):
            return parent
        state = ContextState.read(model, ids[known:], parent, segment_length=segment_length, progress=progress)
        try:
            self.put(state)
        except (OSError, ValueError) as error:
            logger.warning("%s", error)
        return state

    def list(self) -> Stored:
        """What is stored, the most recently used first."""
        return self._mended(self._index.rows)

    def last_used(self, entry: StoredContext) -> float:
        """When a context was last stored or found, in seconds since 1970.

        Raises:
            OSError: it is not there any more.
        """
        return (self.folder / STATES / entry.name).stat().st_mtime

    @property
    def nbytes(self) -> int:
        """Bytes of all stored files."""
        return sum(entry.nbytes for entry in self.list())

    def remove(self, entry: StoredContext | str) -> None:
        """Delete a context, given as in `list` or by its name.

        Raises:
            ValueError: there is none of that name.
        """
        name = entry if isinstance(entry, str) else entry.name
        self._mended(lambda: self._remove(name))

    def sweep(self) -> None:
        """Delete what killed processes left behind, and nothing that has another name than a store gives.

        Contexts beyond `max_bytes` are deleted too. A new `ContextStore` does so by itself.
        """
        self._mended(self._shrink)
        self._mended(self._sweep)

    def _find(self, model: EchoForCausalLM, ids: Tensor) -> tuple[ContextState, int] | None:
        fingerprint = model_fingerprint(model)
        stored = self._index.of_model(fingerprint, len(ids))
        hashes = prefix_hashes(ids, {entry.tokens for entry in stored})
        for entry in stored:
            if entry.name != _name(fingerprint, entry.tokens, hashes[entry.tokens]):
                continue
            state = self._load(entry, model)
            if state is not None:
                self._touch(entry)
                return state, entry.tokens
        return None

    def _put(self, name: str, state: ContextState) -> StoredContext:
        entry = self._index.get(name)
        if entry is not None and self._is_whole(entry):
            self._touch(entry)
            return entry
        with self._working_folder() as work:
            state.save(work / name)
            return self._take_in(work / name, state)

    def _take_in(self, written: Path, state: ContextState) -> StoredContext:
        """Move a written context to its place and into the index, in one transaction, and evict others for it."""
        name = written.name
        nbytes = sum(path.stat().st_size for path in written.iterdir())
        if self.max_bytes is not None and nbytes > self.max_bytes:
            raise ValueError(
                f"the context of {state.tokens:,} tokens was not stored: it takes {nbytes:,} bytes, more than the "
                f"store's max_bytes = {self.max_bytes:,}"
            )
        evicted: list[str] = []
        try:
            with self._index.transaction() as connection:
                entry = self._index.row(connection, name)
                if entry is not None:  # another process was faster
                    return entry
                place = self.folder / STATES / name
                replaced = self._set_aside(name)
                written.rename(place)
                flush(place.parent)
                entry = self._index.add(connection, name, state.fingerprint, state.tokens, state.token_hash, nbytes)
                if self.max_bytes is not None:
                    evicted = self._index.evict(connection, self.max_bytes)
        except OSError:
            with contextlib.suppress(OSError):
                self._discard([name])
            raise
        _delete(replaced)
        self._discard(evicted)
        return entry

    def _remove(self, name: str) -> None:
        found = self._index.get(name)
        if found is None:
            raise ValueError(f"{self.folder} holds no context {name}: see list()")
        try:
            self._index.drop(found)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            # A full disk has no room for the index's journal: make some.
            if OWN[STATES].fullmatch(name):
                _delete(self.folder / STATES / name)
            self._index.drop(found)
        self._discard([name])

    def _shrink(self) -> None:
        if self.max_bytes is None:
            return
        try:
            with self._index.transaction() as connection:
                evicted = self._index.evict(connection, self.max_bytes)
        except OSError as error:  # a full disk: opening a store, which can be read all the same, is not to fail by it
            logger.warning("contexts beyond max_bytes could not be deleted: %s", error)
            return
        self._discard(evicted)

    def _sweep(self) -> None:
        with self._index.transaction() as connection:
            known = {row[0] for row in connection.execute("SELECT name FROM contexts")}
            for path in (self.folder / STATES).iterdir():
                if path.name not in known:
                    self._set_aside(path.name)
            left = [path for path in (self.folder / WORK).iterdir() if _is_abandoned(path)]
        for path in left:
            _delete(path)

    def _load(self, entry: StoredContext, model: EchoForCausalLM) -> ContextState | None:
        """A stored context, or None if it is damaged (then it is removed) or cannot be had."""
        try:
            state = ContextState.load(self.folder / STATES / entry.name, model)
            if (state.fingerprint, state.tokens, state.token_hash) != (
                entry.fingerprint,
                entry.tokens,
                entry.token_hash,
            ):
                raise ValueError(f"the context {entry.name} is not what the index says")
            return state
        except ValueError as error:
            self._report(entry, error)
        except OSError as error:
            logger.warning("a stored context of %s tokens cannot be read now: %s", f"{entry.tokens:,}", error)
        return None

    def _is_whole(self, entry: StoredContext) -> bool:
        """Whether a stored context's files are as they were written; else it is removed."""
        try:
            read_sealed_folder(self.folder / STATES / entry.name, KIND, FORMAT)
            return True
        except ValueError as error:
            self._report(entry, error)
            return False

    def _report(self, entry: StoredContext, error: ValueError) -> None:
        """Remove an entry that does not load, unless another process has just removed or replaced it."""
        current = self._index.get(entry.name)
        if current is None or current.id != entry.id:
            return
        logger.warning("removed a stored context of %s tokens: %s", f"{entry.tokens:,}", error)
        with contextlib.suppress(OSError):  # a full disk: it is removed next time
            self._index.drop(entry)
            self._discard([entry.name])

    def _touch(self, entry: StoredContext) -> None:
        try:
            self._mended(lambda: self._index.touch(entry.name))
            os.utime(self.folder / STATES / entry.name)  # the order of use outlives the index so: see _adopt
        except (OSError, DamagedIndexError) as error:  # when it was used is no reason to fail
            logger.debug("%s", error)

    def _discard(self, names: Iterable[str]) -> None:
        """Delete the folders of contexts that are not in the index (any more)."""
        with self._index.transaction() as connection:
            aside = [self._set_aside(name) for name in names if not self._index.row(connection, name)]
        for path in aside:
            _delete(path)

    def _set_aside(self, name: str) -> Path:
        """Rename a context's folder, if there is one, out of the way; what is not named like one stays."""
        aside = self.folder / WORK / f"deleted-{secrets.token_hex(8)}"
        if OWN[STATES].fullmatch(name):
            with contextlib.suppress(FileNotFoundError):
                (self.folder / STATES / name).rename(aside)
        return aside

    @contextlib.contextmanager
    def _working_folder(self) -> Iterator[Path]:
        """A folder to write in, locked for as long as the process lives so that no other sweeps it."""
        path = self.folder / WORK / f"written-{secrets.token_hex(8)}"
        with contextlib.ExitStack() as held:
            with self._index.transaction():  # so that nobody sweeps between the two lines
                path.mkdir()
                held.enter_context(locked_folder(path))
            try:
                yield path
            finally:
                _delete(path)

    def _mended(self, query: Callable[[], Answer]) -> Answer:
        """What the index answers, made anew first if it is damaged."""
        try:
            return query()
        except DamagedIndexError as error:
            self._replace_index(error)
            return query()

    def _open(self) -> None:
        with self._index.transaction() as connection:
            if self._index.is_new(connection):
                self._adopt(connection)

    def _adopt(self, connection: sqlite3.Connection) -> None:
        """Put every whole folder into a new index, the one least recently used first."""
        own = [path for path in (self.folder / STATES).iterdir() if OWN[STATES].fullmatch(path.name)]
        for path in sorted(own, key=lambda path: path.stat().st_mtime_ns):
            try:
                found = read_description(path, KIND, FORMAT)
                values = (found["fingerprint"], found["tokens"], found["token_hash"])
                if path.name == _name(*values):
                    nbytes = sum(file.stat().st_size for file in path.iterdir())
                    self._index.add(connection, path.name, *values, nbytes)
            except (ValueError, KeyError, OSError) as error:
                logger.warning("a stored context was left out of the new index: %s", error)

    def _replace_index(self, error: DamagedIndexError) -> None:
        """Set a damaged index aside and make another from the folders."""
        with locked_folder(self.folder):
            try:
                self._open()  # another process may have done it meanwhile
            except DamagedIndexError:
                logger.warning("%s: it is made anew from the stored contexts", error)
                for suffix in ("", "-journal"):
                    with contextlib.suppress(FileNotFoundError):
                        (self.folder / f"{INDEX}{suffix}").replace(self.folder / f"{INDEX}.damaged{suffix}")
                self._open()


def is_store(folder: Path) -> bool:
    """Whether a folder is that of a `ContextStore`: by its index or, where that was lost, by what else it holds."""
    states = folder / STATES
    if not states.is_dir():
        return False
    return (folder / INDEX).is_file() or (any(states.iterdir()) and _foreign(folder) is None)


def _foreign(folder: Path) -> Path | None:
    """Something in a folder that no store put there, if there is such."""
    for path in folder.iterdir():
        if path.name in INDEX_NAMES:
            continue
        if path.name not in OWN or not path.is_dir():
            return path
        for inner in path.iterdir():
            if not OWN[path.name].fullmatch(inner.name):
                return inner
    return None


def _delete(path: Path) -> None:
    """Delete a file, or a folder and all that is in it; what cannot be deleted stays, and is tried again when swept."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        path.unlink()


def _name(fingerprint: str, tokens: int, token_hash: str) -> str:
    """The folder of a context: it says in which format, of which model and of which tokens."""
    return hashlib.sha256(f"{FORMAT} {fingerprint} {tokens} {token_hash}".encode()).hexdigest()[:40]


def _is_abandoned(path: Path) -> bool:
    """Whether it is a store's working folder, and nobody writes in it any more."""
    if not OWN[WORK].fullmatch(path.name):
        return False
    if path.name.startswith("deleted-"):
        return True
    try:
        with locked_folder(path, wait=False) as held:
            return held or time.time() - path.stat().st_mtime > ABANDONED_SECONDS
    except BlockingIOError:
        return False
    except FileNotFoundError:  # its writer has just finished
        return False
