"""A folder held by one process: the lock is gone when the process is, however it ended."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

CANNOT_LOCK = {errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""What file systems answer that lock no folders (NFS, say)."""


@contextlib.contextmanager
def locked_folder(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a folder, against every other holder in this process or another (`flock`).

    Nothing is written for it, and the system takes the lock back when the process ends or is killed.

    Args:
        folder: which exists.
        wait: until another holder is done.

    Yields:
        Whether it is held: False on Windows and on file systems that lock no folders.

    Raises:
        BlockingIOError: another holds it, and `wait` is False.
        OSError: there is no such folder, or it cannot be opened.
    """
    if fcntl is None:
        yield False
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield _lock(descriptor, wait)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def sole_folder(folder: Path, busy: str) -> Iterator[None]:
    """Hold a folder, or refuse at once.

    Args:
        folder: which exists.
        busy: what to say where another holds it.

    Raises:
        ValueError: `busy`.
        OSError: there is no such folder, or it cannot be opened.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked_folder(folder, wait=False))
        except BlockingIOError:
            raise ValueError(busy) from None
        yield


def _lock(descriptor: int, wait: bool) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in CANNOT_LOCK:
            raise
        return False
    return True
