"""A sealed file: a safetensors file with JSON metadata and a checksum over every byte of it.

Any safetensors reader opens one. The seal stands at the very beginning of the header, as the metadata entry `echo_ska`:

    {"sha256": "<64 hex digits>", "kind": "<what it holds>", "version": 1, "metadata": {...}}

The checksum is that of the whole file with its own 64 digits read as zeros. So no byte can be changed, added or lost
without being noticed, padding and header included. It guards against accidents, not against forgery.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from echo_ska.sealed.disk import led_to, storable, whole_file

_START = b'{"__metadata__":{"echo_ska":"{\\"sha256\\":\\"'
_DIGITS = slice(8 + len(_START), 8 + len(_START) + 64)  # safetensors' 8 bytes of header length stand first
_ZEROS = "0" * 64


def write_sealed_file(
    path: str | os.PathLike[str],
    tensors: dict[str, Tensor],
    metadata: dict[str, Any],
    *,
    kind: str,
    version: int,
    overwrite: bool = False,
) -> None:
    """Write a sealed file that is whole or absent: beside, flushed to disk, then renamed.

    Args:
        path: the file.
        tensors: by name; of any dtype and device.
        metadata: JSON (no NaN).
        kind: what the file holds, e.g. "associative memory"; `read_sealed_file` asks for it by this name.
        version: of the format of `tensors` and `metadata`.
        overwrite: replace a file that exists; its permissions stay. Of a symbolic link, the file that it leads to.

    Raises:
        FileExistsError: there is such a file, and `overwrite` is False.
        OSError: it cannot be written (it is a folder, no such folder, a full disk); what was there before is untouched.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file")
    if os.path.lexists(path) and not overwrite:
        raise _exists(path)
    folder = led_to(path).parent
    if not folder.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: the folder {folder} does not exist")
    seal = json.dumps(
        {"sha256": _ZEROS, "kind": kind, "version": version, "metadata": metadata},
        separators=(",", ":"),
        allow_nan=False,
    )
    contents = bytearray(save(storable(tensors), metadata={"echo_ska": seal}))
    if not _has_seal(contents):
        raise RuntimeError(
            "this release of safetensors lays its header out in another way: install the one in constraints.txt"
        )
    contents[_DIGITS] = _checksum(contents)
    try:
        with whole_file(path, replace=overwrite) as partial:
            partial.write_bytes(contents)
    except FileExistsError:  # another process was faster
        raise _exists(path) from None


def _exists(path: Path) -> FileExistsError:
    return FileExistsError(f"{path} exists: choose another name, or pass overwrite=True to replace it")


def read_sealed_file(
    path: str | os.PathLike[str], *, kind: str, version: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors (on the CPU) and the metadata of a sealed file, after verifying all of it.

    Args:
        path: the file.
        kind, version: what it must hold, as given to `write_sealed_file`.

    Raises:
        OSError: it cannot be read.
        ValueError: one sentence, if the file is cut short, changed, foreign, of another kind or of another version.
    """
    path = Path(path)
    contents = bytearray(path.read_bytes())
    if not _has_seal(contents):
        raise ValueError(
            f"{path} is not a file that echo_ska wrote, or its beginning is damaged: name a file written by save"
        )
    if contents[_DIGITS] != _checksum(contents):
        raise ValueError(
            f"{path} is damaged: its {len(contents)} bytes do not match its checksum, so it was cut short or changed "
            "after it was written; take another copy of it"
        )
    # The checksum holds, so what follows is as it was written.
    header = json.loads(contents[8 : 8 + int.from_bytes(contents[:8], "little")])
    seal = json.loads(header["__metadata__"]["echo_ska"])
    if seal["kind"] != kind:
        raise ValueError(f"{path} holds a file of kind {seal['kind']!r}, not {kind!r}: load it as what it is")
    if seal["version"] != version:
        raise ValueError(
            f"{path} has format version {seal['version']} and this release of echo_ska reads version {version}: "
            "load it with the release that wrote it"
        )
    # Copies, since tensors inside the file's bytes may be less aligned than fresh ones.
    return {name: tensor.clone() for name, tensor in load(bytes(contents)).items()}, seal["metadata"]


def _has_seal(contents: bytearray) -> bool:
    return contents.startswith(_START, 8) and len(contents) >= _DIGITS.stop


def _checksum(contents: bytearray) -> bytes:
    """The 64 hex digits of the file with zeros in their place."""
    digest = hashlib.sha256(contents[: _DIGITS.start])
    digest.update(_ZEROS.encode())
    digest.update(memoryview(contents)[_DIGITS.stop :])
    return digest.hexdigest().encode()
