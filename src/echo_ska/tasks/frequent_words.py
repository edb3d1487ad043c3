"""Frequent words: which words of a list came most often? They are asked for in the order of their frequency.

One sequence of `FrequentWords(words=3, top=2, least=1, step=1, length=16)`, words are the keys 0 ... 63, fillers
(.) 96 ... 119; #1, #2 = the ranks, named by the values 64, 65, ...:

    position    0    1    2    3    4    5    6    7    8    9   10   11   12   13   14   15
    role     word    .    . word word word    . word    . word    .    .   #1 word   #2 word
    input      53   96  108   47   44   44  119   47  110   44  113  109   64   44   65   47
    label    -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100   44 -100   47

All words have other counts: the rarest comes `least` times, and each rank up `step` times more. It is harder with
more words, a smaller step beside larger counts, and more fillers between.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from echo_ska.tasks.alphabet import Alphabet
from echo_ska.tasks.base import draw_distinct, require_integer
from echo_ska.tasks.layout import StoredThenAsked, require_at_most


@dataclass(frozen=True, kw_only=True)
class FrequentWords(StoredThenAsked):
    """Common and frequent words (Hsieh et al. 2024, arXiv 2404.06654, RULER, aggregation).

    RULER's common words all come equally often and its frequent ones as often as a power law says; here every count
    is another, so that each rank has one answer.

    Attributes:
        words: words of the list, distinct.
        top: ranks asked for, from the most frequent down, each with one word for its answer.
        least: times that the rarest word comes.
        step: by how many times each word leads the next.
        length, vocab_size, num_keys, num_values: see `AlphabetTask`.

    Raises:
        ValueError: for settings that cannot be met.
    """

    words: int = 6
    top: int = 2
    least: int = 1
    step: int = 1

    def _check(self, alphabet: Alphabet) -> None:
        require_integer("words", self.words, 2)
        require_integer("top", self.top, 1)
        require_integer("least", self.least, 1)
        require_integer("step", self.step, 1)
        require_at_most("words", self.words, self.num_keys, "keys, and words are distinct")
        require_at_most("top", self.top, self.words, "words")
        require_at_most("top", self.top, self.num_values, "values, which name the ranks")

    @property
    def chance(self) -> float:
        """1 / num_keys: the answer is a word, uniform whatever the rank.

        Who rules out the answers before has 1 / (num_keys - r) with r of them. Knowing the list's words, but not their
        counts, gives 1 / words for the first rank.
        """
        return 1 / self.num_keys

    @property
    def counts(self) -> tuple[int, ...]:
        """How often each word comes, the most frequent first."""
        return tuple(self.least + self.step * rank for rank in reversed(range(self.words)))

    @property
    def _contents(self) -> str:
        return f"{self.words} words, {sum(self.counts)} times in all, and {self.top} questions"

    @property
    def stored_shape(self) -> tuple[int, int]:
        """Single words."""
        return sum(self.counts), 1

    @property
    def asked_shape(self) -> tuple[int, int]:
        """Rank, word."""
        return self.top, 2

    def _draw(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        count, _ = self.stored_shape
        words = draw_distinct(batch_size, self.words, self.num_keys, generator)  # [B, words], most frequent first
        order = draw_distinct(batch_size, count, count, generator)
        listed = words.repeat_interleave(torch.tensor(self.counts), dim=1).gather(1, order)
        ranks = (self.alphabet.first_value + torch.arange(self.top)).expand(batch_size, -1)
        return listed[:, :, None], torch.stack([ranks, words[:, : self.top]], dim=-1)
