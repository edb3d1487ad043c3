"""Documents that are rows of files: JSON lines, also compressed, and Parquet, read group by group."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import IO, Any, cast

from echo_ska.corpus.documents import Document, require_field, stamp_of, text_of

ROWS = 256
"""Rows of a Parquet file in memory at a time."""


class JsonLinesSource:
    """A file of JSON objects, one a line (blank lines are passed over).

    Args:
        path: UTF-8, or gzip of that where its name ends in .gz.
        field: which field holds the text.
    """

    def __init__(self, path: Path, field: str) -> None:
        self.path, self.field = path, field

    def describe(self) -> dict[str, Any]:
        """The name without the way to it, and bytes."""
        return {"kind": "json lines", "name": self.path.name, "bytes": self.path.stat().st_size}

    def stamp(self) -> str:
        """Of the file."""
        return stamp_of([self.path])

    def documents(self) -> Iterator[Document]:
        """The rows in order. A line that is no JSON object with a text in `field` raises ValueError, naming it."""
        try:
            with self._open() as file:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        origin = f"{self.path}, line {number}"
                        yield Document(text_of(_row(line, origin), self.field, origin), origin)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{self.path} is not a whole gzip file ({error}): take another copy of it.") from None

    def _open(self) -> IO[bytes]:
        if self.path.suffix.lower() == ".gz":
            return cast(IO[bytes], gzip.open(self.path, "rb"))
        return self.path.open("rb")


class ParquetSource:
    """A Parquet file (extra `data`).

    Args:
        path: the file.
        field: which column holds the text.

    Raises:
        ValueError: pyarrow is not installed, or the file is no Parquet or has no such column of text, or several.
    """

    def __init__(self, path: Path, field: str) -> None:
        self.path, self.field = path, field
        pyarrow = _pyarrow()
        self._errors = (pyarrow.ArrowException, OSError)
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                self.rows, schema = file.metadata.num_rows, file.schema_arrow
        except self._errors as error:
            raise self._unreadable(error) from None
        require_field(field, schema.names, str(path))
        if (times := schema.names.count(field)) > 1:
            raise ValueError(f"{path} has {times} columns of the name {field}: write it with one, of the text.")
        kind = schema.field(field).type
        kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
        is_view = getattr(pyarrow.types, "is_string_view", pyarrow.types.is_string)  # of later versions of pyarrow
        if not any(is_text(kind) for is_text in (pyarrow.types.is_string, pyarrow.types.is_large_string, is_view)):
            raise ValueError(
                f"{path}: the column {field} is of type {kind}, not of text: name the column with the text (--field)."
            )

    def describe(self) -> dict[str, Any]:
        """The name without the way to it, rows and bytes."""
        return {"kind": "parquet", "name": self.path.name, "rows": self.rows, "bytes": self.path.stat().st_size}

    def stamp(self) -> str:
        """Of the file."""
        return stamp_of([self.path])

    def documents(self) -> Iterator[Document]:
        """The rows in order, of the one column, some hundreds in memory at a time.

        A row that is not UTF-8, which Parquet does not rule out, raises ValueError, naming it.
        """
        number = 0
        try:
            with _pyarrow().parquet.ParquetFile(self.path) as file:
                for batch in file.iter_batches(batch_size=ROWS, columns=[self.field]):
                    # By its name: pyarrow also gives the field `text` of a column `meta` for a column `meta.text`.
                    for value in batch.column(self.field):
                        origin = f"{self.path}, row {number}"
                        yield Document(_text(value, origin), origin)
                        number += 1
        except self._errors as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: BaseException) -> ValueError:
        return ValueError(f"{self.path} cannot be read as Parquet ({str(error).splitlines()[0]}).")


class RowFolder:
    """Files of rows of one kind, one after the other.

    Args:
        path: the folder that they are in.
        files: a source each, at least one.
    """

    def __init__(self, path: Path, files: Sequence[JsonLinesSource | ParquetSource]) -> None:
        self.path, self.files = path, files

    def describe(self) -> dict[str, Any]:
        """The kind, the folder's name without the way to it, files, rows where they are counted, and bytes."""
        each = [file.describe() for file in self.files]
        described = {"kind": each[0]["kind"], "name": self.path.resolve().name, "files": len(each)}
        for count in ("rows", "bytes"):
            if count in each[0]:
                described[count] = sum(one[count] for one in each)
        return described

    def stamp(self) -> str:
        """Of the files."""
        return stamp_of(file.path for file in self.files)

    def documents(self) -> Iterator[Document]:
        """The rows of all files in order; what one of them raises names it."""
        for file in self.files:
            yield from file.documents()


def _text(value: Any, origin: str) -> str:
    """What a cell of Parquet holds; "" where it is null."""
    try:
        return value.as_py() or ""
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{origin} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x} ({error.reason}); "
            "convert it to UTF-8 or leave it out."
        ) from None


def _row(line: bytes, origin: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{origin} is not JSON in UTF-8: {str(error).splitlines()[0]}.") from None
    if not isinstance(row, dict):
        raise ValueError(f"{origin} is not a JSON object with fields, but of type {type(row).__name__}.")
    return row


def _pyarrow() -> ModuleType:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError("Parquet files are read by pyarrow: pip install 'echo-ska[data]'.") from None
    return pyarrow
