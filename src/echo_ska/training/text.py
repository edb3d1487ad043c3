"""Real text as bytes: loading files, holding some out, drawing windows. The vocabulary is the 256 bytes."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from echo_ska.training.data import rows_of_part, step_generator

VOCAB_SIZE = 256
END_OF_FILE = 0
"""The byte between files in training data. Text holds no NUL (`load_text` refuses it), so it is free."""

SUFFIXES = (".txt", ".md")

ROWS = {"JSON lines": (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz"), "Parquet": (".parquet",)}
"""How the names of files of rows end, each of which is a text of its own; `echo_ska.corpus` reads them."""

ONE_A_LINE = "one object with its text a line"
NO_TEXT = {
    (".json",): f"is JSON: where it has {ONE_A_LINE}, rename it to *.jsonl, which `echo-ska data prepare` reads; else "
    "write it so",
    (".csv", ".tsv", ".xml", ".html", ".htm", ".xlsx", ".arrow", ".feather", ".orc", ".avro"): (
        f"is of no kind that is read: write its documents as *.jsonl ({ONE_A_LINE}) or as *.parquet, which `echo-ska "
        "data prepare` reads, or as files of text; only where all of it is one text, markup included, rename it to "
        "*.txt"
    ),
    (".gz", ".tgz", ".zip", ".bz2", ".xz", ".zst", ".7z", ".tar"): (
        "is compressed or packed: unpack it first; only *.jsonl.gz is read as it is, by `echo-ska data prepare`"
    ),
}
"""How the names of data end that would become one text of markup, and what to do with such a file."""


class TextFile(NamedTuple):
    """A text as bytes: where it came from, and `tokens`, uint8 [N]."""

    path: Path
    tokens: Tensor


class TextSplit(NamedTuple):
    """Files to train on, files held out, and a sentence that says how they were chosen."""

    training: list[TextFile]
    held_out: list[TextFile]
    description: str


def load_text(paths: Iterable[str | Path]) -> list[TextFile]:
    """Read text files, in the order of `paths`; a folder gives its *.txt and *.md, subfolders included,
    sorted.

    A file named explicitly may have any name but that of data (`ROWS`, `NO_TEXT`); folders and files that start with a
    dot are passed over inside a folder; a file found twice is read once. A UTF-8 byte-order mark is removed and CRLF
    becomes LF.

    Raises:
        ValueError: one sentence, for a path that is missing or unreadable, a folder without text, and a file
            that is named as data, or is empty or not UTF-8 text (with the offset of its first bad byte, counted from
            0).
    """
    return [_read(file) for file in find_text(paths)]


def find_text(paths: Iterable[str | Path]) -> list[Path]:
    """The files that `load_text` reads, each once, unread.

    Raises:
        ValueError: a path is missing or named as data, a folder holds no text, or there is no path.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        for file in _files_of(path):
            found.setdefault(file.resolve(), file)
    if not found:
        raise ValueError("No text was given: name at least one file or folder.")
    return list(found.values())


def split_by_file(files: Sequence[TextFile], held_out: Iterable[str | Path] | None = None) -> TextSplit:
    """Hold out about a tenth of the files, at least one, or those named by `held_out` (files or folders).

    The choice depends on the files' contents alone (the smallest hashes), not on their names, place or order,
    and copies of one text stay on one side, those of a text that was named too. Of a single text the last tenth of its
    bytes is held out.

    Raises:
        ValueError: without files, if `held_out` names a file that is not one of `files`, or leaves none to train on, or
            for a single text under 20 bytes.
    """
    if not files:
        raise ValueError("There is no text to hold anything out of.")
    digests = [digest(file.tokens) for file in files]
    if held_out is not None:
        named = {file.resolve(): file for path in held_out for file in _files_of(Path(path))}
        found = {file.path.resolve(): summed for file, summed in zip(files, digests, strict=True)}
        if not named.keys() & found.keys():
            raise ValueError("The texts to hold out are none of the texts given.")
        if absent := [file for path, file in named.items() if path not in found]:
            more = f" (nor are {len(absent) - 1} more)" if len(absent) > 1 else ""
            raise ValueError(
                f"{absent[0]} is to be held out and is not one of the texts given{more}: give it among them, or do not "
                "hold it out."
            )
        withheld = {found[path] for path in named}
        chosen = [file for file, digest in zip(files, digests, strict=True) if digest in withheld]
        rest = [file for file, digest in zip(files, digests, strict=True) if digest not in withheld]
        if not rest:
            raise ValueError("The texts to hold out are every text given, which leaves nothing to train on.")
        copies = len(chosen) - len(named)
        with_copies = "" if copies == 0 else f" (with {copies} {'copy' if copies == 1 else 'copies'})"
        return TextSplit(rest, chosen, f"Held out as asked{with_copies}: {_names(chosen)}.")
    ordered = sorted(set(digests))
    if len(ordered) == 1:
        return _split_one(files[0])
    smallest = set(ordered[: max(1, len(ordered) // 10)])
    training = [file for file, digest in zip(files, digests, strict=True) if digest not in smallest]
    chosen = [file for file, digest in zip(files, digests, strict=True) if digest in smallest]
    return TextSplit(training, chosen, f"Held out, {len(chosen)} of {len(files)} files: {_names(chosen)}.")


class TextData:
    """Random windows of text: every byte is scored but the first of a window, which the model has not read
    before.

    The files are joined into one stream, each closed by `END_OF_FILE`, and windows start anywhere in it, so
    that short files count too. A window may therefore hold the end of one file and the beginning of the next: the
    model's state is not reset between them, and only the byte says so. Batches of a prepared corpus
    (`echo_ska.corpus.PackedTokens`) are reset where a document begins.

    Args:
        files: what to draw from.
        batch_size: windows in a batch B, at least 1.
        length: bytes in a window T, at least 2.
        seed: any integer; other seeds give independent batches.

    Raises:
        ValueError: if the files together are shorter than one window, or a number is too small.
    """

    def __init__(self, files: Sequence[TextFile], batch_size: int, length: int, seed: int) -> None:
        if batch_size < 1 or length < 2:
            raise ValueError(f"Need batch_size >= 1 and length >= 2, got {batch_size} and {length}.")
        end = torch.tensor([END_OF_FILE], dtype=torch.uint8)
        self.stream = torch.cat([part for file in files for part in (file.tokens, end)])  # [N]
        if len(self.stream) < length:
            raise ValueError(
                f"The training text has {len(self.stream)} bytes, less than one window of {length}: "
                "give more text or a shorter length."
            )
        self.files = [file.path.name for file in files]
        self.batch_size = batch_size
        self.length = length
        self.seed = seed
        self.vocab_size = VOCAB_SIZE

    def batch(self, step: int, part: int = 0, parts: int = 1) -> dict[str, Tensor]:
        """The windows of part `part` of step `step`: `input_ids` and `labels` (equal: the model shifts), int64
        [B / parts, T]. See `rows_of_part`."""
        starts = torch.randint(
            len(self.stream) - self.length + 1,
            (self.batch_size, 1),
            generator=step_generator(self.seed, step),
        )
        windows = self.stream[starts + torch.arange(self.length)].long()  # [B, T]
        return rows_of_part({"input_ids": windows, "labels": windows.clone()}, part, parts)

    def describe(self) -> dict[str, Any]:
        """The files' names, a checksum of all bytes, the window and the seed."""
        return {
            "files": self.files,
            "blake2b": digest(self.stream),
            "batch_size": self.batch_size,
            "length": self.length,
            "seed": self.seed,
        }


def _files_of(path: Path) -> list[Path]:
    if path.is_file():
        _refuse_data(path)
        return [path]
    if not path.is_dir():
        raise ValueError(f"{path} does not exist.")
    text = [file for file in files_inside(path) if file.suffix.lower() in SUFFIXES]
    if not text:
        raise ValueError(f"The folder {path} holds no text: no *.txt or *.md file, in subfolders either.")
    return text


def _refuse_data(path: Path) -> None:
    name = path.name.lower()
    for kind, endings in ROWS.items():
        if name.endswith(endings):
            raise ValueError(
                f"{path} holds rows ({kind}), each a text of its own: `echo-ska data prepare` reads them, and "
                "`echo-ska train --data` learns what that writes; only where all of it is one text, rename it to *.txt."
            )
    for endings, why in NO_TEXT.items():
        if name.endswith(endings):
            raise ValueError(f"{path} {why}.")


def files_inside(folder: Path) -> list[Path]:
    """All files in a folder, subfolders included, sorted; files and folders that start with a dot are passed over."""
    inside = (file for file in folder.rglob("*") if file.is_file())
    return sorted(file for file in inside if not any(part.startswith(".") for part in file.relative_to(folder).parts))


def read_text(path: Path) -> bytes:
    """One file as `load_text` reads it, UTF-8 without a byte-order mark and without CRLF; it may be empty.

    Raises:
        ValueError: it cannot be read, or is not UTF-8 text.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"{path} is not UTF-8 text: byte 0 starts a UTF-16 byte-order mark; convert it to UTF-8.")
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text: byte {error.start} is {raw[error.start]:#04x} ({error.reason}); "
            "convert it to UTF-8 or leave it out."
        ) from None
    if (offset := raw.find(0)) >= 0:
        raise ValueError(f"{path} is not text: byte {offset} is NUL; leave it out.")
    return raw.removeprefix(codecs.BOM_UTF8).replace(b"\r\n", b"\n")


def _read(path: Path) -> TextFile:
    text = read_text(path)
    if not text:
        raise ValueError(f"{path} is empty.")
    return TextFile(path, torch.frombuffer(bytearray(text), dtype=torch.uint8))


def _split_one(file: TextFile) -> TextSplit:
    cut = len(file.tokens) - len(file.tokens) // 10
    while cut < len(file.tokens) and 0x80 <= int(file.tokens[cut]) < 0xC0:
        cut += 1  # never inside a character of several bytes
    held = file.tokens[cut:]
    if len(held) < 2:
        raise ValueError(f"{file.path} is the only text and too short ({len(file.tokens)} bytes) to hold a tenth out.")
    return TextSplit(
        [TextFile(file.path, file.tokens[:cut])],
        [TextFile(file.path, held)],
        f"There is only one text, {file.path.name}: its last tenth ({len(held):,} bytes) is held out.",
    )


def _names(files: Sequence[TextFile]) -> str:
    shown = ", ".join(file.path.name for file in files[:5])
    return shown if len(files) <= 5 else f"{shown} and {len(files) - 5} more"


def digest(tokens: Tensor) -> str:
    """A checksum of the tokens as they lie in memory; another dtype of the same tokens has another."""
    return hashlib.blake2b(tokens.numpy().tobytes(), digest_size=16).hexdigest()
