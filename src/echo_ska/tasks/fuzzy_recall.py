"""Fuzzy recall: keys, and if wanted values, are of several tokens, and only a whole key says which value is meant.

One sequence of `FuzzyRecall(pairs=2, key_tokens=2, value_tokens=2, symbols=2, length=20)`, keys from the tokens
0 and 1, values from 64 ... 95, fillers (.) from 96 ... 119:

    position    0    1    2    3    4    5    6    7    8    9   10   11   12   13   14   15   16   17   18   19
    role        .  key  key  val  val    .  key  key  val  val    .    .  ask  ask  val  val  ask  ask  val  val
    input      96    0    0   73   83  119    1    1   85   82  109  113    1    1   85   82    0    0   73   83
    label    -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100   85   82 -100 -100   73   83

Keys are distinct as a whole and share their tokens: with few symbols, most of a key's tokens stand in other keys
too. The answer's tokens are read after they were predicted, so that each is asked with the whole key and the
beginning of the value before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from echo_ska.tasks.alphabet import Alphabet
from echo_ska.tasks.base import draw_distinct, require_integer
from echo_ska.tasks.layout import StoredThenAsked, require_at_most, shuffle_blocks


@dataclass(frozen=True, kw_only=True)
class FuzzyRecall(StoredThenAsked):
    """MQAR with keys of several tokens (Poli et al. 2024, arXiv 2403.17844: fuzzy in-context recall).

    There the number of a key's tokens varies from key to key; here it is one for all, so that a setting has one
    difficulty.

    Attributes:
        pairs: key-value pairs, keys distinct within a sequence; each is asked for once, in an order of its own.
        key_tokens: tokens of a key, drawn uniformly with replacement.
        value_tokens: tokens of a value, drawn so too.
        symbols: tokens that keys are made of, the first of the alphabet's keys. Fewer share more.
        length, vocab_size, num_keys, num_values: see `AlphabetTask`.

    Raises:
        ValueError: for settings that cannot be met.

    Chance is 1 / num_values for each token. Knowing the values, but not their keys, gives over 1 / pairs.
    """

    pairs: int = 6
    key_tokens: int = 2
    value_tokens: int = 1
    symbols: int = 8

    def _check(self, alphabet: Alphabet) -> None:
        require_integer("pairs", self.pairs, 1)
        require_integer("key_tokens", self.key_tokens, 1)
        require_integer("value_tokens", self.value_tokens, 1)
        require_integer("symbols", self.symbols, 1)
        require_at_most("symbols", self.symbols, self.num_keys, "keys in the alphabet")
        if not self.pairs <= self._choices < 2**62:
            raise ValueError(
                f"{self.key_tokens} tokens of {self.symbols} symbols make {self._choices} keys, but {self.pairs} "
                f"distinct ones (and fewer than 2^62) are needed: change key_tokens or symbols."
            )

    @property
    def _choices(self) -> int:
        return int(self.symbols**self.key_tokens)

    @property
    def _contents(self) -> str:
        return f"{self.pairs} pairs of {self.key_tokens} + {self.value_tokens} tokens, a pause and as many questions"

    @property
    def stored_shape(self) -> tuple[int, int]:
        """Key, value."""
        return self.pairs, self.key_tokens + self.value_tokens

    @property
    def asked_shape(self) -> tuple[int, int]:
        """The same."""
        return self.stored_shape

    @property
    def scored(self) -> int:
        """The value's tokens."""
        return self.value_tokens

    def _draw(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        # A key is a number, its tokens are the digits: distinct numbers, and every set of them equally likely.
        numbers = draw_distinct(batch_size, self.pairs, self._choices, generator)  # [B, pairs]
        places = self.symbols ** torch.arange(self.key_tokens)
        keys = numbers[:, :, None] // places % self.symbols  # [B, pairs, key_tokens]
        values = self.alphabet.draw_values((batch_size, self.pairs, self.value_tokens), generator)
        pairs = torch.cat([keys, values], dim=-1)
        return pairs, shuffle_blocks(pairs, generator)
