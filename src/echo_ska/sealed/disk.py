"""What writing a file wholly or not at all takes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

PARTIAL = ".partial-"
"""Prefix of files and folders that are being written or deleted; whatever bears it was left by a killed process."""


def digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Force a file or folder to disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open folders
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str], *, replace: bool = True) -> Iterator[Path]:
    """A file beside another to write to, which takes the other's place at the end, flushed to disk.

    A symbolic link stays: the file that it leads to is replaced, or made. A file's permissions stay too.

    Args:
        path: what is to be written.
        replace: False refuses what is there, by the end too; a link is there wherever it leads.

    Raises:
        FileExistsError: something is there, and `replace` is False.
        OSError: it cannot be written; or it is no regular file, such as a folder or a device. What was there stays.
    """
    path = Path(path)
    target = led_to(path) if replace else path
    if replace and target.exists() and not target.is_file():
        raise OSError(f"{path} is no regular file and cannot be replaced: name another")
    partial = target.with_name(f"{PARTIAL}{target.name}-{secrets.token_hex(4)}")
    try:
        partial.touch(exist_ok=False)
        if replace and target.exists():
            partial.chmod(stat.S_IMODE(target.stat().st_mode))
        yield partial
        flush(partial)
        if replace:
            partial.replace(target)
        else:
            _rename_to_new(partial, target)
        flush(target.parent)
    finally:
        partial.unlink(missing_ok=True)


def led_to(path: Path) -> Path:
    """The file that a name stands for, there or not: where a symbolic link leads, else `path` without links in it.

    Raises:
        OSError: links lead round in a circle.
    """
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return target


def _rename_to_new(partial: Path, path: Path) -> None:
    """Give a file its name, unless that is taken: a rename would take the place of what was saved there meanwhile."""
    try:
        os.link(partial, path)  # the caller deletes the other name
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        partial.replace(path)


def storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, contiguous, and no two of them in one storage, as safetensors demands."""
    stored, storages = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.nbytes() != tensor.nbytes or storage.data_ptr() in storages:
            tensor = tensor.clone()
        storages.add(tensor.untyped_storage().data_ptr())
        stored[name] = tensor
    return stored
