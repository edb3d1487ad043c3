"""Needles in a haystack: numbers of words, told once each somewhere in background prose.

RULER's retrieval tasks (Hsieh et al. 2024, arXiv 2404.06654, niah_single, niah_multikey and niah_multivalue). A needle
is the sentence

    The special magic number for <word> is <number>.

and the question asks for the number of one word and begins its answer, as RULER does. Numbers have seven digits. All
candidates are numbers of the same kind: those of all needles in the text, so that with several needles having seen a
number is not enough, and where these are too few, others that are not in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Self

from echo_ska.evaluation.hidden_text import Story, TextTask, TokenCounter, require_names

_NOUNS = """
anchor apricot badger balloon bamboo basket beacon beetle biscuit blanket bottle bracelet bucket butterfly button
cabbage cactus camel candle canyon carpet castle cherry chimney cinnamon cobweb compass copper coral cricket crystal
cushion daisy diamond dolphin donkey dragon drum eagle elbow ember falcon feather fiddle flamingo fountain ginger
giraffe glacier goblet granite hammer harbor hazel hedgehog helmet honey igloo island ivory jacket jasmine jungle
kettle ladder lantern lemon lizard magnet mango maple marble meadow mirror muffin mushroom necklace nutmeg oyster
paddle panther parsley pebble pelican pepper piano pigeon pillow plum pumpkin puppet quartz rabbit ribbon saddle
saffron sandal scarf shovel sparrow spider spoon thimble tiger tulip turnip turtle umbrella velvet violin walnut
whistle willow zebra
"""
WORDS = tuple(_NOUNS.split())


@dataclass(frozen=True)
class NeedleTask(TextTask):
    """Numbers of words.

    Attributes:
        name: how the task is called.
        words: words that have numbers, W; one of them is asked for.
        numbers: numbers of each, V; all of them are asked for, in any order.
        candidates: numbers to choose from, at least W V; those that are missing are made up.

    Raises:
        ValueError: there are not so many words.
    """

    name: str = "single"
    words: int = 1
    numbers: int = 1
    candidates: int = 10

    def __post_init__(self) -> None:
        if not 1 <= self.words <= len(WORDS) or not 1 <= self.numbers <= self.candidates // self.words:
            raise ValueError(
                f"words must be from 1 to {len(WORDS)} and words times numbers from 1 to candidates, got words="
                f"{self.words}, numbers={self.numbers}, candidates={self.candidates}."
            )

    @property
    def chance(self) -> float:
        """V / candidates: whichever V are chosen, so many of them are right on average."""
        return self.numbers / self.candidates

    def story(self, number: int, seed: int) -> Story:
        """See `TextTask`."""
        random = Random(f"needle {self.name} {seed} {number}")
        words = random.sample(WORDS, self.words)
        drawn = [str(value) for value in random.sample(range(1_000_000, 10_000_000), self.candidates)]
        told = list(zip([word for word in words for _ in range(self.numbers)], drawn, strict=False))
        random.shuffle(told)
        needles = [f"The special magic number for {word} is {value}." for word, value in told]
        asked = words[0]
        question = f"What is the special magic number for {asked} mentioned in the text above?"
        if self.numbers > 1:
            question = f"What are all the special magic numbers for {asked} mentioned in the text above?"
        return Story(
            facts=tuple(needles),
            question=f"Question: {question}\nAnswer: The special magic number for {asked} is",
            answers=tuple(sorted(drawn[: self.numbers])),
            candidates=tuple(sorted(drawn)),
        )

    def limited_to(self, tokens: int, measure: TokenCounter) -> Self:
        """The task itself: its stories are made up without end, and `text_recall` refuses where one does not fit."""
        return self


NEEDLES = {
    task.name: task
    for task in (
        NeedleTask("single"),
        NeedleTask("multi-key", words=10),
        NeedleTask("multi-value", words=4, numbers=4, candidates=16),
    )
}
"""RULER's variants by name: one needle; ten, of which one is asked for; four words of four numbers each."""


def needle_tasks(variants: Sequence[str] = ()) -> list[NeedleTask]:
    """Those of `NEEDLES` that are named, all if none is; ValueError for one that is unknown."""
    return [NEEDLES[name] for name in require_names(variants, list(NEEDLES), "needle")]
