"""Needles in a haystack: key-value pairs at random depths in filler, asked for at the end.

One sequence of `Needle(needles=3, length=20)`, keys from 0 ... 63, values from 64 ... 95, fillers (.) from
96 ... 119:

    position    0    1    2    3    4    5    6    7    8    9   10   11   12   13   14   15   16   17   18   19
    role      key  val    .  key  val    .    .    .  key  val    .    .    .    .  ask  val  ask  val  ask  val
    input      40   72  117   15   86  119   98  108   45   75  109  119  115  102   15   86   40   72   45   75
    label    -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100   86 -100   72 -100   75

Every needle is asked for once, in an order of its own. Keys are distinct within a sequence, values are drawn
with replacement. The difficulty is the number of needles and the length: all fillers stand among the needles.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from echo_ska.tasks.alphabet import Alphabet
from echo_ska.tasks.base import draw_distinct, require_integer
from echo_ska.tasks.layout import StoredThenAsked, require_at_most, shuffle_blocks


@dataclass(frozen=True, kw_only=True)
class Needle(StoredThenAsked):
    """Needle retrieval. Usual numbers of needles are 1, 4 and 8.

    Attributes:
        needles: key-value pairs, each asked for once.
        length, vocab_size, num_keys, num_values: see `AlphabetTask`.

    Raises:
        ValueError: for settings that cannot be met.

    Chance is 1 / num_values. Knowing which values are stored, but not under which key, gives over 1 / needles:
    everything, with one needle.
    """

    needles: int = 4

    def _check(self, alphabet: Alphabet) -> None:
        require_integer("needles", self.needles, 1)
        require_at_most("needles", self.needles, self.num_keys, "keys, and those of a sequence are distinct")

    @property
    def _contents(self) -> str:
        return f"{self.needles} needles and their questions"

    @property
    def stored_shape(self) -> tuple[int, int]:
        """Pairs of key and value."""
        return self.needles, 2

    @property
    def asked_shape(self) -> tuple[int, int]:
        """Key, value."""
        return self.needles, 2

    def _draw(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        keys = draw_distinct(batch_size, self.needles, self.num_keys, generator)
        values = self.alphabet.draw_values((batch_size, self.needles), generator)
        pairs = torch.stack([keys, values], dim=-1)  # [B, needles, 2]
        return pairs, shuffle_blocks(pairs, generator)
