"""The index of a context store: one SQLite table, safe with several processes and when one is killed."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

BUSY_SECONDS = 60.0
"""How long to wait for other processes; each holds the index for milliseconds."""

_SCHEMA = (
    "CREATE TABLE contexts (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, fingerprint TEXT NOT NULL,"
    " tokens INTEGER NOT NULL, token_hash TEXT NOT NULL, nbytes INTEGER NOT NULL, used INTEGER NOT NULL) STRICT",
    "CREATE INDEX by_model ON contexts (fingerprint, tokens)",
    "CREATE INDEX by_use ON contexts (used)",
)
_COLUMNS = "id, name, fingerprint, tokens, token_hash, nbytes"
_NEXT_USE = "(SELECT COALESCE(MAX(used), 0) + 1 FROM contexts)"


class DamagedIndexError(ValueError):
    """The index file is no longer a database that SQLite can read."""


@dataclasses.dataclass(frozen=True)
class StoredContext:
    """A row of the index.

    Attributes:
        id: counts up; a context stored again gets another one.
        name: of its folder.
        fingerprint: of the model that read it.
        tokens, token_hash: of the context.
        nbytes: of its files.
    """

    id: int
    name: str
    fingerprint: str
    tokens: int
    token_hash: str
    nbytes: int


class ContextIndex:
    """Rows by name, model and use. Every call is a transaction over a connection of its own.

    So it can be used from threads and after a fork. SQLite's rollback journal makes a killed process's half a
    transaction undone by whoever comes next.

    Raises:
        DamagedIndexError: SQLite finds the file damaged.
        OSError: it cannot be read or written; ENOSPC: the disk is full; TimeoutError: another process kept it locked.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextlib.contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """A connection whose errors are this class's."""
        with (
            _translated(self.path),
            contextlib.closing(sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)) as connection,
        ):
            # Kept from transaction to transaction, the journal takes no new room on a disk that is full.
            connection.execute("PRAGMA journal_mode = PERSIST")
            connection.execute("PRAGMA synchronous = FULL")
            yield connection

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One that others wait for from its beginning; committed at the end, or undone."""
        with self.connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise

    def is_new(self, connection: sqlite3.Connection) -> bool:
        """Make the table if there is none, and check the file if there is one."""
        if connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'contexts'").fetchone() is None:
            for statement in _SCHEMA:
                connection.execute(statement)
            return True
        if connection.execute("PRAGMA integrity_check(1)").fetchone() != ("ok",):
            raise DamagedIndexError(f"the index {self.path} is damaged (its check failed)")
        return False

    def add(
        self, connection: sqlite3.Connection, name: str, fingerprint: str, tokens: int, token_hash: str, nbytes: int
    ) -> StoredContext:
        """A new row, the most recently used."""
        values = (name, fingerprint, tokens, token_hash, nbytes)
        cursor = connection.execute(
            f"INSERT INTO contexts (name, fingerprint, tokens, token_hash, nbytes, used) "
            f"VALUES (?, ?, ?, ?, ?, {_NEXT_USE})",
            values,
        )
        assert cursor.lastrowid is not None
        return StoredContext(cursor.lastrowid, *values)

    def row(self, connection: sqlite3.Connection, name: str) -> StoredContext | None:
        found = connection.execute(f"SELECT {_COLUMNS} FROM contexts WHERE name = ?", (name,)).fetchone()
        return None if found is None else StoredContext(*found)

    def get(self, name: str) -> StoredContext | None:
        with self.connection() as connection:
            return self.row(connection, name)

    def rows(self) -> list[StoredContext]:
        """All, the most recently used first."""
        with self.connection() as connection:
            return [StoredContext(*row) for row in connection.execute(f"{_SELECT} ORDER BY used DESC, id DESC")]

    def of_model(self, fingerprint: str, at_most: int) -> list[StoredContext]:
        """Those of a model with no more tokens than `at_most`, the longest first."""
        with self.connection() as connection:
            query = f"{_SELECT} WHERE fingerprint = ? AND tokens <= ? ORDER BY tokens DESC"
            return [StoredContext(*row) for row in connection.execute(query, (fingerprint, at_most))]

    def touch(self, name: str) -> None:
        """Make a row the most recently used."""
        with self.transaction() as connection:
            connection.execute(f"UPDATE contexts SET used = {_NEXT_USE} WHERE name = ?", (name,))

    def drop(self, entry: StoredContext) -> bool:
        """Delete a row; whether it was there. One made anew counts from 1 again: the name must fit too."""
        with self.transaction() as connection:
            deleted = connection.execute("DELETE FROM contexts WHERE id = ? AND name = ?", (entry.id, entry.name))
            return deleted.rowcount > 0

    def evict(self, connection: sqlite3.Connection, max_bytes: int) -> list[str]:
        """Delete the rows least recently used until the others' files fit; the names of the deleted ones."""
        total = connection.execute("SELECT COALESCE(SUM(nbytes), 0) FROM contexts").fetchone()[0]
        evicted = []
        for id, name, nbytes in connection.execute(
            "SELECT id, name, nbytes FROM contexts ORDER BY used, id"
        ).fetchall():
            if total <= max_bytes:
                break
            connection.execute("DELETE FROM contexts WHERE id = ?", (id,))
            evicted.append(name)
            total -= nbytes
        return evicted


_SELECT = f"SELECT {_COLUMNS} FROM contexts"


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    """SQLite's errors as those that callers know."""
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError) as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF  # none: its text was not UTF-8
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):  # the last: no such table
            raise DamagedIndexError(
                f"the index {path} is damaged ({error}): open the store again, and it is made anew"
            ) from error
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise TimeoutError(errno.ETIMEDOUT, f"the index {path} was locked for {BUSY_SECONDS:.0f} s") from error
        number = errno.ENOSPC if code in (sqlite3.SQLITE_FULL,) else errno.EIO
        raise OSError(number, f"{os.strerror(number)} (the index {path}: {error})") from error
