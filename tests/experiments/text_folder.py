"""A folder of small texts, as experiments on language take it."""

from __future__ import annotations

import random
from pathlib import Path

WORDS = ("the", "sea", "was", "grey", "and", "no", "wind", "came", "over", "the", "long", "hill", "where", "she")


def write_texts(folder: Path, size: int = 700) -> Path:
    """train/ of two files, valid/, test/ of two, wikitext2/ of a test.txt among others."""
    names = ("train/a", "train/b", "valid/v", "test/x", "test/y", "wikitext2/test", "wikitext2/valid")
    for number, name in enumerate(names):
        chance = random.Random(number)
        text = " ".join(chance.choices(WORDS, k=size))[:size]
        path = folder / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "notes").mkdir()
    (folder / "notes" / "readme.md").write_text("no text to score")
    return folder
