"""Files that commands write: their paths are checked before any work, and they are whole or absent."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any


def require_writable(path: Path | None, option: str, suffix: str | None = None) -> None:
    """Raise ValueError, naming the option, unless a file of that suffix can be written at `path` (None is fine)."""
    if path is None:
        return
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder: name a file in it.")
    if not path.parent.is_dir():
        raise ValueError(f"{option} {path} cannot be written: the folder {path.parent} does not exist.")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"{option} {path} cannot be written: no permission to write in {path.parent}.")
    if suffix is not None and path.suffix.lower() != suffix:
        raise ValueError(f"{option} {path} must end in {suffix}: no other format is written.")


def require_folder(path: Path | None, option: str) -> None:
    """Raise ValueError, naming the option, if `path` or a part of it is a file (None, and new folders, are fine)."""
    if path is None:
        return
    for part in (path, *path.parents):
        if part.exists():
            if not part.is_dir():
                raise ValueError(f"{option} {path} cannot be a folder: {part} is a file.")
            return


def write_json(path: Path | None, value: Any) -> None:
    """Write `value` to `path` in one piece, beside it first; numbers that are not finite become null."""
    if path is None:
        return
    text = json.dumps(_finite(value), indent=2, allow_nan=False, default=str) + "\n"
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
