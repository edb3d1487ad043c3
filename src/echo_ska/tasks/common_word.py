"""The common word: a key is stored several times, and the value that came most often with it is asked for.

One sequence of `CommonWord(cues=2, most=2, margin=1, others=1, length=20)`, keys from 0 ... 63, values from
64 ... 95, fillers (.) from 96 ... 119:

    position    0    1    2    3    4    5    6    7    8    9   10   11   12   13   14   15   16   17   18   19
    role      key  val  key  val  key  val  key  val    .    .  key  val  key  val    .    .  ask  val  ask  val
    input      43   95   43   73   37   76   43   95   98  116   37   76   37   72  119  102   43   95   37   76
    label    -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100   95 -100   76

Each cue is stored `most` times with its answer and `most - margin` times with each of `others` other values,
in random order: the answer is always the one maximum. It is harder with a smaller margin and more others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from echo_ska.tasks.alphabet import Alphabet
from echo_ska.tasks.base import draw_distinct, require_integer
from echo_ska.tasks.layout import StoredThenAsked, require_at_most, shuffle_blocks


@dataclass(frozen=True, kw_only=True)
class CommonWord(StoredThenAsked):
    """The value most often stored with a key.

    Attributes:
        cues: keys, distinct within a sequence; each is asked for once, in an order of its own.
        most: times that the answer is stored with its key.
        margin: by how many times it leads every other value, at least 1 and below `most`.
        others: other values stored with each key, distinct.
        length, vocab_size, num_keys, num_values: see `AlphabetTask`.

    Raises:
        ValueError: for settings that cannot be met.

    Chance is 1 / num_values, and answers of different keys are independent. Knowing the values stored with the
    key, but not how often, gives 1 / (1 + others); the value stored last with it is right `most` times of
    most + others (most - margin).
    """

    cues: int = 4
    most: int = 3
    margin: int = 2
    others: int = 2

    def _check(self, alphabet: Alphabet) -> None:
        require_integer("cues", self.cues, 1)
        require_integer("most", self.most, 2)
        require_integer("margin", self.margin, 1)
        require_integer("others", self.others, 1)
        require_at_most("cues", self.cues, self.num_keys, "keys, and those of a sequence are distinct")
        require_at_most("others", self.others, self.num_values - 1, "values beside the answer")
        if self.margin >= self.most:
            raise ValueError(
                f"margin must be below most, or no other value would be stored, got {self.margin} and {self.most}: "
                f"use a margin of at most {self.most - 1} or a larger most."
            )

    @property
    def _stored_with_a_cue(self) -> int:
        return self.most + self.others * (self.most - self.margin)

    @property
    def _contents(self) -> str:
        return f"{self.cues} cues, {self._stored_with_a_cue} pairs for each, and their questions"

    @property
    def stored_shape(self) -> tuple[int, int]:
        """Pairs of key and value."""
        return self.cues * self._stored_with_a_cue, 2

    @property
    def asked_shape(self) -> tuple[int, int]:
        """Key, value."""
        return self.cues, 2

    def _draw(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        keys = draw_distinct(batch_size, self.cues, self.num_keys, generator)  # [B, cues]
        words = draw_distinct(batch_size * self.cues, 1 + self.others, self.num_values, generator)
        words = self.alphabet.first_value + words.view(batch_size, self.cues, 1 + self.others)  # the answer first
        times = torch.tensor([self.most] + [self.most - self.margin] * self.others)
        values = words.repeat_interleave(times, dim=2)  # [B, cues, pairs of a cue]
        pairs = torch.stack([keys[:, :, None].expand_as(values), values], dim=-1).flatten(1, 2)
        answers = torch.stack([keys, words[:, :, 0]], dim=-1)
        return shuffle_blocks(pairs, generator), shuffle_blocks(answers, generator)
