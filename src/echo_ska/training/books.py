"""The two public-domain novels shipped with the package: one to train on, one to read unseen."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

BOOKS = {"train": "CBronte_Villette.txt", "unseen": "Conrad_Almayer_1895.txt"}
"""File in `echo_ska/data/books` by its use; the README.md there has sources, checksums and licence."""


def book_path(use: str) -> Path:
    """Path of the book for `use`, "train" (about 1 MB) or "unseen" (about 0.35 MB), in the installed package.

    Raises:
        ValueError: for another use.
        FileNotFoundError: if the package was installed without its data.
    """
    if use not in BOOKS:
        raise ValueError(f"There is a book for {' and one for '.join(map(repr, BOOKS))}, none for {use!r}.")
    # Packages are installed unzipped, so the resource is a plain file, which outlives this context.
    with as_file(files("echo_ska") / "data" / "books" / BOOKS[use]) as path:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: reinstall echo-ska.")
        return path
