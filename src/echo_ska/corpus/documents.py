"""What documents are, what a source of them is, and files of text as one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from echo_ska.training.text import find_text, read_text


class Document(NamedTuple):
    """A text, and where it stands, for people to find it."""

    text: str
    origin: str


class Source(Protocol):
    """Documents in an order that is the same at every reading."""

    def describe(self) -> dict[str, Any]:
        """What it is, for JSON: compared before a corpus that was begun is gone on with."""
        ...

    def stamp(self) -> str | None:
        """What differs once files were written to, found without reading them (`stamp_of`); None if nothing is."""
        ...

    def documents(self) -> Iterator[Document]:
        """The documents from the first one on, one in memory at a time.

        Raises:
            ValueError: one sentence, where something is not as it must be.
            OSError: something cannot be read.
        """
        ...


class TextSource:
    """A text file, or a folder of them: one document a file.

    Raises:
        ValueError: it does not exist, or is a folder without text.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = find_text([path])

    def describe(self) -> dict[str, Any]:
        """The name without the way to it, files and bytes."""
        sizes = [file.stat().st_size for file in self.files]
        return {"kind": "text", "name": self.path.resolve().name, "files": len(sizes), "bytes": sum(sizes)}

    def stamp(self) -> str:
        """Of the files."""
        return stamp_of(self.files)

    def documents(self) -> Iterator[Document]:
        """The files in order; a file that is not UTF-8 text, or has a NUL, raises ValueError."""
        for file in self.files:
            yield Document(read_text(file).decode("utf-8"), str(file))


def stamp_of(files: Iterable[Path]) -> str:
    """A checksum over the name, the size and the time of the last change of each file, in order."""
    found = ((file, file.stat()) for file in files)
    listed = "".join(f"{file.name}\0{seen.st_size}\0{seen.st_mtime_ns}\0" for file, seen in found)
    return hashlib.blake2b(listed.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def text_of(row: Mapping[str, Any], field: str, origin: str) -> str:
    """The text in a row; "" where it is null.

    Raises:
        ValueError: the row has no such field, or it holds something else.
    """
    require_field(field, list(row), origin)
    value = row[field]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(
            f"{origin}: the field {field} holds a value of type {type(value).__name__}, not a text: name the field "
            "with the text (--field)."
        )
    return value


def require_field(field: str, names: list[str], origin: str) -> None:
    """Raise ValueError unless `field` is one of these names."""
    if field not in names:
        there = f"only {', '.join(map(str, names))}" if names else "and no other either"
        raise ValueError(f"{origin} has no field {field}, {there}: name the field with the text (--field).")
