"""Questions about a few sentences that stand scattered in background prose, at any length.

What BABILong (`babilong.py`) and needles in a haystack (`needle.py`) share. A question as it is read, `tokens` in all
with its longest answer at most:

    <prose> <prose> <FACT> <prose> <FACT> <FACT> <prose> ...    `text`: facts in their order, each once
                                                                an empty line
    Question: Where is John?                                    `question`
    Answer:
     kitchen.                                                   one of `candidates`, each behind a space
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Self

from echo_ska.training.text import load_text

TokenCounter = Callable[[str], int]
"""The number of a text's tokens."""

END_OF_ANSWER = "."
"""Scored with every candidate: otherwise no answer could be beaten by a longer one that begins like it."""

WHOLE_SENTENCE = re.compile(r"[^\s].*?[.!?][\"')]*(?=\s|$)")
WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class TextQuestion:
    """A text, what is asked about it, and the answers to choose from.

    Attributes:
        text: facts in background prose.
        question: what is read after the text, up to the answer.
        answers: the right ones of `candidates`, one or several.
        candidates: all answers to choose from, sorted, so that their order says nothing.
    """

    text: str
    question: str
    answers: tuple[str, ...]
    candidates: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """All that is read before the answer."""
        return self.text + self.question

    @staticmethod
    def written(candidate: str) -> str:
        """A candidate as it is read after the prompt."""
        return f" {candidate}{END_OF_ANSWER}"


@dataclass(frozen=True)
class Story:
    """What is hidden, and what is asked.

    Attributes:
        facts: sentences, in the order in which they are to stand.
        question: with its beginning of an answer, see `TextQuestion`.
        answers, candidates: see `TextQuestion`.
        names: words that no sentence of the background may hold, since it would be about the story.
    """

    facts: tuple[str, ...]
    question: str
    answers: tuple[str, ...]
    candidates: tuple[str, ...]
    names: frozenset[str] = frozenset()

    def tokens(self, measure: TokenCounter) -> int:
        """Tokens that it takes without any background."""
        answer = max(measure(TextQuestion.written(candidate)) for candidate in self.candidates)
        return sum(measure(f" {fact}") for fact in self.facts) + measure(f"\n\n{self.question}") + answer


class TextTask(ABC):
    """A kind of question about texts.

    Attributes:
        name: how the command line and records call it.
    """

    name: str

    @property
    @abstractmethod
    def chance(self) -> float:
        """Expected share of right answers, in [0, 1], of a guesser that knows the task and reads the question alone."""

    @property
    def questions(self) -> int | None:
        """How many different questions there are; None where they are made up without end."""
        return None

    @abstractmethod
    def story(self, number: int, seed: int) -> Story:
        """The story of question `number`, counted from 0: it depends on the two arguments alone."""

    @abstractmethod
    def limited_to(self, tokens: int, measure: TokenCounter) -> Self:
        """The same task with the stories alone that take at most `tokens` without any background.

        A task whose stories are made up leaves none out: see `text_recall.require_fit`.

        Raises:
            ValueError: there is none.
        """


class Prose:
    """Background: the sentences of some texts, in their order.

    Args:
        paths: text files, or folders of *.txt and *.md.

    Raises:
        ValueError: a path is missing, is no UTF-8 text, or all of them hold no sentence.
    """

    def __init__(self, paths: Iterable[str | Path]) -> None:
        files = load_text(paths)
        texts = (bytes(file.tokens.numpy()).decode() for file in files)
        self.sentences = [sentence for text in texts for sentence in sentences_of(text)]
        if not self.sentences:
            raise ValueError(f"{files[0].path} holds no sentence that ends in a full stop: it is no background prose.")

    def passage(self, tokens: int, measure: TokenCounter, random: Random, without: frozenset[str]) -> list[str]:
        """Sentences that follow one another from a random one, as many as go into `tokens`.

        Those that hold a word of `without` are left out. After the last sentence of all comes the first.

        Raises:
            ValueError: every sentence holds one.
        """
        at = random.randrange(len(self.sentences))
        found: list[str] = []
        passed_over = 0
        while True:
            sentence = self.sentences[at]
            at = (at + 1) % len(self.sentences)
            if without and not without.isdisjoint(WORD.findall(sentence)):
                passed_over += 1
                if passed_over == len(self.sentences):
                    raise ValueError(f"Every sentence of the background holds one of {', '.join(sorted(without))}.")
                continue
            passed_over = 0
            tokens -= measure(f" {sentence}")
            if tokens < 0:
                return found
            found.append(sentence)


def sentences_of(text: str) -> list[str]:
    """The sentences of a text in one line each; headings and what else has no full stop at its end are left out."""
    found: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        found += WHOLE_SENTENCE.findall(" ".join(paragraph.split()))
    return found


def hide(story: Story, prose: Prose, tokens: int, measure: TokenCounter, random: Random) -> TextQuestion:
    """Put a story's facts between sentences of the background, each place equally likely, in their order.

    Args:
        story: what to hide.
        prose: where.
        tokens: of text, question and longest answer together, at most; the background ends where its next sentence
            would not fit. 0: no background.
        measure: counts tokens. The sum over sentences (each with the space before it) is kept to.
        random: is advanced.

    Raises:
        ValueError: the story alone takes more.
    """
    needed = story.tokens(measure)
    if tokens and needed > tokens:
        raise ValueError(f"A story of {needed} tokens does not fit into {tokens}: ask at a greater length.")
    background = prose.passage(tokens - needed, measure, random, story.names) if tokens else []
    places = sorted(random.randint(0, len(background)) for _ in story.facts)
    sentences: list[str] = []
    begin = 0
    for fact, place in zip(story.facts, places, strict=True):
        sentences += [*background[begin:place], fact]
        begin = place
    text = " ".join(sentences + background[begin:])
    return TextQuestion(text, f"\n\n{story.question}", story.answers, story.candidates)


def shuffled(count: int, number: int, seed: int) -> int:
    """Entry `number` of a random order of `count` things, which begins anew where it ends: all come equally often."""
    order = list(range(count))
    Random(f"order {seed} {number // count}").shuffle(order)
    return order[number % count]


def require_names(given: Sequence[str], known: Sequence[str], task: str) -> list[str]:
    """`given` without repeats, or all of `known` if it is empty; ValueError for one that is not known."""
    if unknown := [name for name in given if name not in known]:
        raise ValueError(f"{task} has no variant {unknown[0]!r}: choose from {', '.join(known)}.")
    return list(dict.fromkeys(given)) or list(known)
