"""BABILong: questions of the bAbI tasks, their facts scattered in novels.

Kuratov et al. 2024, arXiv 2406.10149, on Weston et al. 2015, arXiv 1502.05698. Differences from BABILong's own data:
the prose is that of a folder (BABILong: PG-19), sentences that name a person of the story are left out of it, and
models without instruction tuning are asked: the likelihoods of all answers are compared, and no examples are given.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Self

from echo_ska.evaluation.hidden_text import WORD, Story, TextTask, TokenCounter, require_names, shuffled
from echo_ska.evaluation.local_tasks import babi_rows

VARIANTS = tuple(f"qa{number}" for number in range(1, 11))
"""The bAbI tasks that BABILong asks."""

CAPITALIZED = re.compile(r"\b[A-Z]\w*")
NOT_NAMES = frozenset({"The"})
"""Capitalised words of facts in qa1 to qa10 that are no names."""


class BabiLong(TextTask):
    """One bAbI task.

    Candidates are all answers that occur in its file.

    Args:
        name: one of `VARIANTS`.
        rows: `passage`, `question` and `answer` of each question, as `babi_rows` gives them.

    Raises:
        ValueError: there is no row.
    """

    def __init__(self, name: str, rows: Sequence[dict[str, str]]) -> None:
        if not rows:
            raise ValueError(f"there is no question for {name}")
        self.name = name
        candidates = tuple(sorted({row["answer"] for row in rows}))
        self._stories = [_story(row, candidates) for row in rows]
        self._chance = _chance(self._stories)

    @property
    def chance(self) -> float:
        """The share of the better of two guessers, who know how often each answer is right and read no text.

        One says the commonest answer to all questions, the other the commonest that the question does not name: who
        is asked where something was before the garden knows that the answer is not the garden. It is that of the whole
        file, however few of its stories `limited_to` has left.
        """
        return self._chance

    @property
    def questions(self) -> int:
        """See `TextTask`."""
        return len(self._stories)

    def story(self, number: int, seed: int) -> Story:
        """See `TextTask`. Every question is asked once before one is asked again."""
        return self._stories[shuffled(len(self._stories), number, seed)]

    def limited_to(self, tokens: int, measure: TokenCounter) -> Self:
        """See `TextTask`. The candidates stay all that occur in the file, and chance that of the file."""
        sizes = [story.tokens(measure) for story in self._stories]
        if min(sizes) > tokens:
            raise ValueError(
                f"The shortest story of {self.name} takes {min(sizes)} tokens, which do not fit into {tokens}: ask at "
                "greater lengths, or at 0 (no background)."
            )
        limited = copy.copy(self)
        limited._stories = [story for story, size in zip(self._stories, sizes, strict=True) if size <= tokens]
        return limited


def _story(row: dict[str, str], candidates: tuple[str, ...]) -> Story:
    facts = tuple(row["passage"].removesuffix("\n").split("\n"))
    names = frozenset(CAPITALIZED.findall(row["passage"])) - NOT_NAMES
    return Story(facts, f"Question: {row['question']}\nAnswer:", (row["answer"],), candidates, names)


def _chance(stories: Sequence[Story]) -> float:
    counts = Counter(story.answers for story in stories)
    by_count = [answers for answers, _ in counts.most_common()]
    right = sum(_first_unnamed(by_count, story.question) == story.answers for story in stories)
    return max(counts[by_count[0]], right) / len(stories)


def _first_unnamed(candidates: Sequence[tuple[str, ...]], question: str) -> tuple[str, ...]:
    """The first of several answers that a question does not name; the first of all where it names each."""
    named = set(WORD.findall(question))
    return next((answers for answers in candidates if named.isdisjoint(answers)), candidates[0])


def load_babi(folder: Path | None = None, variants: Sequence[str] = ()) -> list[BabiLong]:
    """bAbI tasks from their files, named as published: `qa1_..._test.txt`, or `..._train.txt` where there is no test.

    Args:
        folder: where the files are, subfolders included; None takes the sample in this package (qa1 to qa10, 20 to
            45 questions each).
        variants: of `VARIANTS`; none takes all that are there.

    Raises:
        ValueError: one is unknown or not there, or a file is not in bAbI's form.
    """
    wanted = require_names(variants, VARIANTS, "babilong")
    if folder is None:
        folder = sample_folder()
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: name the one that holds bAbI's files.")
    found: list[BabiLong] = []
    for name in wanted:
        paths = sorted(folder.rglob(f"{name}_*.txt"), key=lambda path: ("_test" not in path.name, path))
        if paths:
            found.append(_load(name, paths[0]))
        elif variants:
            raise ValueError(f"{folder} has no file {name}_..._test.txt or {name}_..._train.txt.")
    if not found:
        raise ValueError(f"{folder} holds none of bAbI's files, qa1_..._test.txt to qa10_..._train.txt.")
    return found


def _load(name: str, path: Path) -> BabiLong:
    try:
        return BabiLong(name, list(babi_rows(path.read_text(encoding="utf-8"))))
    except ValueError as error:
        raise ValueError(f"{path} is not one of bAbI's files: {error}.") from None


def sample_folder() -> Path:
    """The folder of the sample in the installed package; its README.md has sources and licence."""
    with as_file(files("echo_ska") / "data" / "babi") as path:  # packages are installed unzipped
        if not path.is_dir():
            raise FileNotFoundError(f"{path} is missing: reinstall echo-ska.")
        return path
