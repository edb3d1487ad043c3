"""A sealed folder holds two files:

    state.safetensors       the tensors
    <kind>.json             a description, the tensor file's SHA-256, and the checksum of the description itself

The JSON has one spelling, so a byte changed anywhere in either file is noticed, white space included.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from echo_ska.sealed.disk import PARTIAL, digest, flush, storable, whole_file

TENSORS = "state.safetensors"
SUMS = "SHA256SUMS"
"""The file in which `write_sums` writes."""


def write_sealed_folder(
    folder: str | Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any], kind: str
) -> None:
    """Write a sealed folder: wholly, or not at all.

    Args:
        folder: where; it must not exist yet.
        tensors: by name, on any device.
        description: JSON; "tensors" and "checksum" are added to it.
        kind: what it is, in one word: the name of the JSON file.

    Raises:
        ValueError: `folder` exists.
        OSError: it could not be written; its errno says why (ENOSPC: the disk is full).
    """
    folder = Path(folder)
    if os.path.lexists(folder):
        raise ValueError(f"{folder} exists: save to another path, or delete it first")
    partial = folder.with_name(f"{PARTIAL}{folder.name}-{secrets.token_hex(4)}")
    try:
        try:
            partial.mkdir(parents=True)
            save_file(storable(tensors), partial / TENSORS)
            seal = {"file": TENSORS, "bytes": (partial / TENSORS).stat().st_size, "sha256": digest(partial / TENSORS)}
            (partial / f"{kind}.json").write_bytes(_encoded({**description, "tensors": seal}))
            for path in (partial / TENSORS, partial / f"{kind}.json", partial):
                flush(path)
            partial.rename(folder)
            flush(folder.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    except (OSError, SafetensorError) as error:
        number = _number(error)
        if number in (errno.EEXIST, errno.ENOTEMPTY):  # another process was faster
            raise ValueError(f"{folder} exists: save to another path, or delete it first") from error
        reason = os.strerror(number) if number else str(error)
        raise OSError(number, f"the {kind} {folder} could not be written: {reason}") from error


def read_sealed_folder(folder: str | Path, kind: str, format: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `write_sealed_folder` wrote: the description, and the tensors on the CPU, in memory of their own.

    Raises:
        ValueError: one sentence, if a file is missing or damaged or `description["format"]` is not `format`.
        OSError: a file is there and cannot be read.
    """
    folder = Path(folder)
    description = read_description(folder, kind, format)
    path = folder / TENSORS
    try:
        if description["tensors"]["sha256"] != digest(path):
            raise _damaged(folder, kind, f"{TENSORS} does not match its checksum")
        # Copies: memory-mapped tensors may be less aligned, and alignment can change the last bit of what is computed.
        return description, {name: tensor.clone() for name, tensor in load_file(path).items()}
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _damaged(folder, kind, f"{TENSORS} is missing") from error
    except (KeyError, TypeError, SafetensorError) as error:
        raise _damaged(folder, kind, f"{TENSORS} is not what {kind}.json says: {error}") from error


def read_description(folder: str | Path, kind: str, format: int) -> dict[str, Any]:
    """The description of a sealed folder, verified by itself, without a look at the tensors.

    Its errors are those of `read_sealed_folder`.
    """
    folder = Path(folder)
    if not folder.exists():
        raise ValueError(f"there is no {kind} at {folder}")
    try:
        written = (folder / f"{kind}.json").read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        if _names(folder) != {TENSORS}:
            raise ValueError(
                f"{folder} is no saved {kind} (it has no {kind}.json): name the folder that was saved as one"
            ) from error
        raise _damaged(folder, kind, f"{kind}.json is missing") from error
    try:
        description = json.loads(written.decode("ascii"))
        sealed = _encoded(description) == written
    except (ValueError, AttributeError, RecursionError):
        sealed = False
    if not sealed:
        raise _damaged(folder, kind, f"{kind}.json does not match its checksum")
    if description.get("format") != format:
        raise ValueError(
            f"the {kind} {folder} has format {description.get('format')} and this version of echo-ska reads format "
            f"{format}: use the version that wrote it, or make it anew"
        )
    return description


def write_description(folder: str | Path, description: Mapping[str, Any], kind: str) -> None:
    """Write a description that stands alone, `read_description` reads it; one that was there before is replaced.

    The file, <kind>.json in `folder`, which must exist, is at any moment the one before or this one.

    Args:
        folder: where.
        description: JSON; "checksum" is added to it.
        kind: what it is, in one word.

    Raises:
        OSError: it could not be written; the one before is untouched. Its errno says why.
    """
    folder = Path(folder)
    try:
        with whole_file(folder / f"{kind}.json") as partial:
            partial.write_bytes(_encoded(description))
    except OSError as error:
        raise OSError(
            error.errno,
            f"{folder / f'{kind}.json'} could not be written ({error.strerror or error}): make room, or see that the "
            "folder can be written to, and try again; what was written before is kept",
        ) from error


def write_sums(folder: Path, names: list[str]) -> None:
    """Write the SHA-256 of these files of `folder` into its SHA256SUMS, as `sha256sum -c` reads it."""
    lines = "".join(f"{digest(folder / name)}  {name}\n" for name in names)
    (folder / SUMS).write_bytes(lines.encode())  # as text, Windows would end the lines in its own way


def broken_sum(folder: Path, names: list[str] | None = None) -> str | None:
    """The first file that is not as SHA256SUMS says, SHA256SUMS itself included; None if all is well.

    Args:
        folder: where `write_sums` wrote.
        names: the files that must be listed; None takes those that are.

    Raises:
        OSError: a file is missing or cannot be read.
    """
    written = (folder / SUMS).read_bytes()
    lines = [line.partition("  ") for line in written.decode("utf-8", "replace").splitlines()]
    recorded = {name: figure for figure, _, name in lines}
    for name in recorded if names is None else names:
        if "/" in name or "\x00" in name or name not in recorded:
            return SUMS
        if recorded[name] != digest(folder / name):
            return name
    expected = "".join(f"{recorded[name]}  {name}\n" for name in (recorded if names is None else names))
    return None if expected.encode() == written else SUMS


def _encoded(description: Mapping[str, Any]) -> bytes:
    """The one spelling of a description, its checksum included."""
    description = {name: value for name, value in description.items() if name != "checksum"}
    checksum = hashlib.sha256(_spelled(description)).hexdigest()
    return _spelled({**description, "checksum": checksum})


def _spelled(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode("ascii")


def _damaged(folder: Path, kind: str, what: str) -> ValueError:
    """The error; it advises to delete a folder only where nothing else is in it."""
    ours = _names(folder) <= {TENSORS, f"{kind}.json"}
    return ValueError(
        f"the {kind} {folder} is damaged ({what}): {'delete it and make it anew' if ours else 'make it anew elsewhere'}"
    )


def _names(folder: Path) -> set[str]:
    """What is in a folder; nothing is in one that is none, or is gone by now."""
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()


def _number(error: OSError | SafetensorError) -> int | None:
    """The system's number of an error; safetensors passes it on in its text alone."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"(?:os error |code: )(\d+)", str(error))
    return int(found.group(1)) if found else None
