"""Inverse matching: pairs are shown as first, second; given the second, the first is asked for.

One sequence of `InverseMatching(pairs=3, length=16)`, seconds from the keys 0 ... 63, firsts the values 64, 65
and 66, fillers (.) from 96 ... 119:

    position    0    1    2    3    4    5    6    7    8    9   10   11   12   13   14   15
    role        .    .  1st  2nd    .    .  1st  2nd    .  1st  2nd    .    .    .  ask  1st
    input     115  117   64   18  111   98   66   11  114   65   40   97  102  100   40   65
    label    -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100   65

The firsts are the first `pairs` values, the same in every sequence, so the sequence tells a permutation of them.
They are values and the seconds are keys: a key is asked and a value answers, as in the other tasks, but the
value was stored BEFORE its key. A filler follows each pair, so that what came after the key is never a value.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from echo_ska.tasks.alphabet import Alphabet
from echo_ska.tasks.base import draw_distinct, require_integer
from echo_ska.tasks.layout import StoredThenAsked, require_at_most


@dataclass(frozen=True, kw_only=True)
class InverseMatching(StoredThenAsked):
    """A permutation, asked against the direction in which it is shown.

    Attributes:
        pairs: firsts and seconds. One pair is asked for: of several, earlier answers would rule out values.
        length, vocab_size, num_keys, num_values: see `AlphabetTask`.

    Raises:
        ValueError: for settings that cannot be met.
    """

    pairs: int = 5

    def _check(self, alphabet: Alphabet) -> None:
        require_integer("pairs", self.pairs, 2)
        require_at_most("pairs", self.pairs, self.num_keys, "keys, and those of a sequence are distinct")
        require_at_most("pairs", self.pairs, self.num_values, "values, and those of a sequence are distinct")

    @property
    def chance(self) -> float:
        """1 / pairs, 20 % by default. Since the firsts are always the same, knowing which are stored adds nothing."""
        return 1 / self.pairs

    @property
    def _contents(self) -> str:
        return f"{self.pairs} pairs, a filler after each, and a question"

    @property
    def stored_shape(self) -> tuple[int, int]:
        """First (a value), second (a key), filler."""
        return self.pairs, 3

    @property
    def asked_shape(self) -> tuple[int, int]:
        """Second, first."""
        return 1, 2

    def _draw(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        firsts = self.alphabet.first_value + draw_distinct(batch_size, self.pairs, self.pairs, generator)
        seconds = draw_distinct(batch_size, self.pairs, self.num_keys, generator)
        fillers = self.alphabet.draw_fillers((batch_size, self.pairs), generator)
        asked = torch.randint(self.pairs, (batch_size, 1), generator=generator)
        question = torch.stack([seconds.gather(1, asked), firsts.gather(1, asked)], dim=-1)  # [B, 1, 2]
        return torch.stack([firsts, seconds, fillers], dim=-1), question
