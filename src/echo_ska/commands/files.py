"""Paths that commands write to, checked before any work (and before anything slow is imported)."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

UNFINISHED = ".partial-output"
"""What is being written to a folder that stands already; if it stays there, a killed command left it."""


STDOUT = Path("-")
"""What `--json` calls standard output."""

TEXTS = ("*.txt", "*.md")
"""The files that a folder of texts is read for."""


def require_writable(path: Path | None, option: str, suffix: str | None = None) -> None:
    """Raise ValueError, naming the option, unless a file of that suffix can be written at `path` (None is fine)."""
    if path is None or (path == STDOUT and suffix is None):
        return
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder: name a file in it.")
    if suffix is not None and path.suffix.lower() != suffix:
        raise ValueError(f"{option} {path} must end in {suffix}: no other format is written.")
    target = _taken_by(path)
    if target is None:  # written to as it is
        if not os.access(path, os.W_OK):
            raise ValueError(f"{option} {path} cannot be written: no permission to write to it.")
        return
    if target.is_symlink():
        raise ValueError(f"{option} {path} cannot be written: it is a link that leads round in a circle.")
    folder = path.parent if target.parent == Path(os.path.realpath(path.parent)) else target.parent
    if not folder.is_dir():
        raise ValueError(f"{option} {path} cannot be written: the folder {folder} does not exist.")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{option} {path} cannot be written: no permission to write in {folder}.")


def _taken_by(path: Path) -> Path | None:
    """The file whose place a file written at `path` takes, there or not: where links lead to. None: it takes none,
    since it is standard output or no regular file, such as a FIFO or a device."""
    if path == STDOUT or (path.exists() and not path.is_file()):
        return None
    return Path(os.path.realpath(path))


def require_folder(path: Path | None, option: str) -> None:
    """Raise ValueError, naming the option, unless `path` is a folder to write in, or can be made (None is fine)."""
    if path is None:
        return
    for part in (path, *path.parents):
        if part.exists():
            if not part.is_dir():
                raise ValueError(f"{option} {path} cannot be a folder: {part} is a file.")
            if not os.access(part, os.W_OK | os.X_OK):
                raise ValueError(f"{option} {path} cannot be written: no permission to write in {part}.")
            return


def require_new_folder(path: Path, option: str) -> None:
    """Raise ValueError, naming the option, unless `path` is an empty folder or one that does not exist yet.

    What a killed command left unfinished there does not count.
    """
    require_folder(path, option)
    if path.is_dir() and any(held.name != UNFINISHED for held in path.iterdir()):
        raise ValueError(f"{option} {path} is not empty: name a new folder, nothing is overwritten.")


def require_absent(path: Path, option: str) -> None:
    """Raise ValueError, naming the option, if anything stands at `path` or it cannot be made there."""
    if os.path.lexists(path):
        raise ValueError(f"{option} {path} exists: name a new folder, nothing is overwritten.")
    require_folder(path, option)


def require_apart(
    path: Path | None, json_file: Path | None, option: str = "--output", *, files: Sequence[str] | None = None
) -> None:
    """Raise ValueError if `--json` would take the place of what `option` names, or of a file inside.

    Args:
        path: what is read or written; None is fine.
        json_file: what `--json` names.
        option: for the message.
        files: patterns, from `path` on, of the only files inside that are read or written; None: all may be.
    """
    if path is None or json_file is None or (target := _taken_by(json_file)) is None:
        return
    kept = Path(os.path.realpath(path))
    if target == kept:
        raise ValueError(f"{option} and --json both name {path}: name two.")
    if not target.is_relative_to(kept):
        return
    inside = target.relative_to(kept).as_posix().lower()
    if files is None or any(fnmatch.fnmatchcase(inside, pattern.lower()) for pattern in files):
        raise ValueError(
            f"--json {json_file} is inside {path} ({option}) and could replace a file of it: name a file elsewhere."
        )


def require_apart_from_texts(paths: Iterable[str | Path], json_file: Path | None, option: str = "--text") -> None:
    """Raise ValueError if `--json` names one of these texts, or a text in one of these folders."""
    for path in paths:
        require_apart(Path(path), json_file, option, files=TEXTS)


def require_apart_from_model(model: Path, json_file: Path | None) -> None:
    """Raise ValueError if `--json` names a file inside a model's folder, or inside the run that it belongs to."""
    require_apart(model, json_file, "MODEL")
    run = Path(os.path.realpath(model)).parent
    if (run / "records.jsonl").is_file():
        require_apart(run, json_file, "the run of MODEL")
