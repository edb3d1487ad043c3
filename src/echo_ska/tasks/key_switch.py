"""Key switch: some keys are stored again with other values, and the latest value is the one that is asked for.

One sequence of `KeySwitch(pairs=3, share=0.34, rebinds=1, length=20)`, keys from 0 ... 63, values from 64 ... 95,
fillers (.) from 96 ... 119; old = a value that does not hold any more:

    position    0    1    2    3    4    5    6    7    8    9   10   11   12   13   14   15   16   17   18   19
    role        .    .    .  key  old  key  val  key  val  key  val    .    .    .  ask  val  ask  val  ask  val
    input     104  113  109   44   73   47   67   44   64   53   91  117  118  119   47   67   44   64   53   91
    label    -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100   67 -100   64 -100   91

Keys that are never re-bound are asked for as well, so that neither the first nor the latest pairs alone will do.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from echo_ska.tasks.alphabet import Alphabet
from echo_ska.tasks.base import draw_distinct, require_integer
from echo_ska.tasks.layout import StoredThenAsked, require_at_most, shuffle_blocks


@dataclass(frozen=True, kw_only=True)
class KeySwitch(StoredThenAsked):
    """MQAR with keys that are re-bound.

    Attributes:
        pairs: keys, distinct within a sequence; each is asked for once, in an order of its own.
        share: of the keys, how many are re-bound, 0 to 1; `switched` says how many these are.
        rebinds: how many more times a re-bound key is stored. Its earlier values all differ from its latest.
        length, vocab_size, num_keys, num_values: see `AlphabetTask`.

    Raises:
        ValueError: for settings that cannot be met.

    Chance is 1 / num_values: latest values are drawn with replacement. Who takes the first value of a key is right
    with the keys that are never re-bound, and with no other.
    """

    pairs: int = 8
    share: float = 0.5
    rebinds: int = 1

    def _check(self, alphabet: Alphabet) -> None:
        require_integer("pairs", self.pairs, 1)
        require_integer("rebinds", self.rebinds, 1)
        require_at_most("pairs", self.pairs, self.num_keys, "keys, and those of a sequence are distinct")
        if isinstance(self.share, bool) or not isinstance(self.share, int | float) or not 0 <= self.share <= 1:
            raise ValueError(f"share must be a number from 0 to 1, got {self.share!r}.")

    @property
    def switched(self) -> int:
        """Keys that are re-bound: share * pairs, rounded."""
        return round(self.share * self.pairs)

    @property
    def _contents(self) -> str:
        return f"{self.pairs} keys, {self.switched} of them re-bound {self.rebinds} times, and their questions"

    @property
    def stored_shape(self) -> tuple[int, int]:
        """Key, value."""
        return self.pairs + self.switched * self.rebinds, 2

    @property
    def asked_shape(self) -> tuple[int, int]:
        """Key, value."""
        return self.pairs, 2

    def _draw(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        count, _ = self.stored_shape
        keys = draw_distinct(batch_size, self.pairs, self.num_keys, generator)  # [B, pairs]
        latest = torch.randint(self.num_values, (batch_size, self.pairs), generator=generator)
        times = torch.ones(self.pairs, dtype=torch.int64)
        times[: self.switched] += self.rebinds
        stored = torch.arange(self.pairs).repeat_interleave(times)  # which key each pair is of
        which = stored[draw_distinct(batch_size, count, count, generator)]  # [B, count], in the order of the text
        last = torch.zeros_like(keys).scatter_reduce_(1, which, torch.arange(count).expand_as(which), "amax")
        is_last = torch.arange(count) == last.gather(1, which)
        offset = torch.randint(1, self.num_values, which.shape, generator=generator).masked_fill_(is_last, 0)
        values = self.alphabet.first_value + (latest.gather(1, which) + offset) % self.num_values
        pairs = torch.stack([keys.gather(1, which), values], dim=-1)
        questions = torch.stack([keys, self.alphabet.first_value + latest], dim=-1)
        return pairs, shuffle_blocks(questions, generator)
