"""Writing a shard: beside, hashed as it grows, flushed, then renamed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from echo_ska.corpus.index import DOCUMENT, Shard
from echo_ska.sealed import PARTIAL, flush

BUFFER_BYTES = 1 << 20
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
OWN = re.compile(rf"({re.escape(PARTIAL)})?shard-(\d+)(?:\.documents)?\.bin")


class ShardWriter:
    """Writes the shards of one split, one after the other, into `folder`, which is made.

    Args:
        folder: of the split.
        dtype: of the tokens.
        written: how many shards there are already. Files of others, and of those that were never closed, are deleted.

    Raises:
        OSError: a file cannot be deleted.
    """

    def __init__(self, folder: Path, dtype: np.dtype[Any], written: int) -> None:
        self.folder, self.dtype, self.written = folder, dtype, written
        self.tokens = 0  # of the shard that is being written
        self._file: IO[bytes] | None = None
        self._documents = array("q")  # two numbers a document: of lists a shard of short rows would fill gigabytes
        self._sum = hashlib.sha256()
        self._clear(written)

    def append(self, ids: NDArray[Any], end_token: int, text_bytes: int) -> None:
        """Add a document, [T] ids without the end token.

        Raises:
            OSError: it could not be written (a full disk, say); `discard` then.
        """
        with self._told():
            if self._file is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._file = self._partial(self._name + ".bin").open("wb", buffering=BUFFER_BYTES)
            for part in (ids, np.array([end_token])):
                written = part.astype(self.dtype).tobytes()
                self._file.write(written)
                self._sum.update(written)
        self._documents.extend((self.tokens, text_bytes))
        self.tokens += len(ids) + 1

    def close(self) -> Shard | None:
        """Finish the shard; None where it has no document. The next one is begun by the next document.

        Raises:
            OSError: it could not be written; `discard` then.
        """
        if self._file is None:
            return None
        documents = np.array(self._documents, DOCUMENT).reshape(-1, 2)
        shard = Shard(
            self._name,
            self.tokens,
            len(documents),
            int(documents[:, 1].sum()),
            self._sum.hexdigest(),
            hashlib.sha256(documents.tobytes()).hexdigest(),
        )
        with self._told():
            self._file.close()
            self._partial(shard.files[1]).write_bytes(documents.tobytes())
            for name in shard.files:
                flush(self._partial(name))
                self._partial(name).replace(self.folder / name)
            flush(self.folder)
        self.written += 1
        self._start()
        return shard

    def discard(self, written: int | None = None) -> None:
        """Delete the shard that is being written, and the folder if nothing else is in it.

        Args:
            written: how many shards count, if not all that were closed; the later ones are deleted too.

        Raises:
            OSError: a file cannot be deleted.
        """
        if self._file is not None:
            with contextlib.suppress(OSError):  # what is still in its buffer finds no place on a full disk
                self._file.close()
        if written is not None:
            self.written = written
        self._clear(self.written)  # also a file that has its name already, and whose fellow does not
        with contextlib.suppress(OSError):
            self.folder.rmdir()
        self._start()

    @property
    def _name(self) -> str:
        return f"shard-{self.written:05d}"

    def _clear(self, written: int) -> None:
        """Delete the files of shards that were never closed, and of those after the first so many."""
        for path in self.folder.glob("*.bin") if self.folder.is_dir() else ():
            found = OWN.fullmatch(path.name)
            if found is not None and (found[1] or int(found[2]) >= written):
                path.unlink()

    def _start(self) -> None:
        self._file, self.tokens, self._documents, self._sum = None, 0, array("q"), hashlib.sha256()

    def _partial(self, name: str) -> Path:
        return self.folder / (PARTIAL + name)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Errors of the disk, as one sentence."""
        try:
            yield
        except OSError as error:
            remedy = "make room" if error.errno in NO_ROOM else "mend that"
            raise OSError(
                error.errno,
                f"{self.folder / self._name}.bin could not be written ({error.strerror}): {remedy} and give the same "
                "command again, which goes on after the last whole shard",
            ) from error
