"""Paths that commands write to, checked before any work (and before anything slow is imported)."""

from __future__ import annotations

import os
from pathlib import Path

UNFINISHED = ".partial-output"
"""What is being written to a folder that stands already; if it stays there, a killed command left it."""


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


def require_apart(path: Path | None, json_file: Path | None, option: str = "--output") -> None:
    """Raise ValueError if `--json` names what `option` names, or a file inside: one could replace the other"""
    if path is None or json_file is None:
        return
    if os.path.abspath(path) == os.path.abspath(json_file):
        raise ValueError(f"{option} and --json both name {path}: name two.")
    if Path(os.path.realpath(json_file.parent)).is_relative_to(os.path.realpath(path)):
        raise ValueError(
            f"--json {json_file} is inside {path} ({option}) and could replace a file of it: name a file elsewhere."
        )


def require_apart_from_model(model: Path, json_file: Path | None) -> None:
    """Raise ValueError if `--json` names a file inside a model's folder, or inside the run that it belongs to."""
    require_apart(model, json_file, "MODEL")
    run = Path(os.path.realpath(model)).parent
    if (run / "records.jsonl").is_file():
        require_apart(run, json_file, "the run of MODEL")
