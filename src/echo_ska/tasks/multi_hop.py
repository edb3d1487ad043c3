"""Multi-hop recall: links a b, b c, ... lead from key to key and at last to a value, which is asked for.

One sequence of `MultiHop(chains=2, hops=2, questions=1, length=20)`, keys from 0 ... 63, values from 64 ... 95,
fillers (.) from 96 ... 119; to = the end of a link, flw = the marker FOLLOW, 124:

    position    0    1    2    3    4    5    6    7    8    9   10   11   12   13   14   15   16   17   18   19
    role      key   to    .    .    .    .  key   to    .  key   to    .  key   to    .    .    .  flw  ask   to
    input      47   67  103  113  109  113    0   91   99   44   47  115   53    0   97  119  119  124   44   67
    label    -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100   67

The links of all chains stand in one random order; chains that are not asked for distract. A filler follows each
link, so that its end is never followed by the start of another. With `written=True` the keys on the way are
written out, and each is scored as an ordinary recall; one sequence of the same settings:

    position    0    1    2    3    4    5    6    7    8    9   10   11   12   13   14   15   16   17   18   19
    role      key   to    .    .    .    .  key   to    .  key   to    .  key   to    .    .    .  ask   to   to
    input      47   67  103  113  109  113    0   91   99   44   47  115   53    0   97  119  119   44   47   67
    label    -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100   47   67

The marker stands only where the end alone is asked for: without it, a b is what was stored with a.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from echo_ska.tasks.alphabet import Alphabet, Marker
from echo_ska.tasks.base import draw_distinct, require_integer
from echo_ska.tasks.layout import StoredThenAsked, require_at_most, shuffle_blocks


@dataclass(frozen=True, kw_only=True)
class MultiHop(StoredThenAsked):
    """The value at the end of a chain of keys.

    Attributes:
        chains: chains of equally many hops; all keys of a sequence are distinct, values drawn with replacement.
        hops: links of a chain, 2 or 3 as a rule (1 is plain recall).
        questions: chains asked for, each once; the others distract.
        written: whether the keys on the way stand before the final answer, and are scored too.
        length, vocab_size, num_keys, num_values: see `AlphabetTask`.

    Raises:
        ValueError: for settings that cannot be met.
    """

    chains: int = 4
    hops: int = 2
    questions: int = 2
    written: bool = False

    def _check(self, alphabet: Alphabet) -> None:
        require_integer("chains", self.chains, 1)
        require_integer("hops", self.hops, 1)
        require_integer("questions", self.questions, 1)
        if not isinstance(self.written, bool):
            raise ValueError(f"written must be true or false, got {self.written!r}.")
        require_at_most("questions", self.questions, self.chains, "chains, and each is asked for once")
        if self.chains * self.hops > self.num_keys:
            raise ValueError(
                f"{self.chains} chains of {self.hops} hops need as many distinct keys, {self.chains * self.hops}, got "
                f"num_keys={self.num_keys}: use fewer chains or more keys."
            )

    @property
    def chance(self) -> float:
        """1 / num_values where the end alone is asked for.

        With `written`, the mean over a chain's answers: hop j leads to a key that is none of the j before it, so
        1 / (num_keys - j), and the last hop to a value, 1 / num_values. Knowing which values are stored, but not
        at which end, gives over 1 / chains for the last hop.
        """
        last = 1 / self.num_values
        if not self.written:
            return last
        return (sum(1 / (self.num_keys - hop) for hop in range(1, self.hops)) + last) / self.hops

    @property
    def _contents(self) -> str:
        return f"{self.chains} chains of {self.hops} hops, a filler after each link, and {self.questions} questions"

    @property
    def stored_shape(self) -> tuple[int, int]:
        """From, to, filler."""
        return self.chains * self.hops, 3

    @property
    def asked_shape(self) -> tuple[int, int]:
        """The whole chain; or the marker, its first key and its end."""
        return self.questions, self.hops + 1 if self.written else 3

    @property
    def scored(self) -> int:
        """All but the first key, or the end alone."""
        return self.hops if self.written else 1

    def _draw(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        keys = draw_distinct(batch_size, self.chains * self.hops, self.num_keys, generator)
        values = self.alphabet.draw_values((batch_size, self.chains, 1), generator)
        chains = torch.cat([keys.view(batch_size, self.chains, self.hops), values], dim=-1)  # [B, chains, hops + 1]
        fillers = self.alphabet.draw_fillers((batch_size, self.chains, self.hops), generator)
        links = torch.stack([chains[:, :, :-1], chains[:, :, 1:], fillers], dim=-1)  # [B, chains, hops, 3]
        asked = shuffle_blocks(chains, generator)[:, : self.questions]
        if not self.written:
            follow = torch.full_like(asked[:, :, :1], self.alphabet.marker(Marker.FOLLOW))
            asked = torch.cat([follow, asked[:, :, :1], asked[:, :, -1:]], dim=-1)
        return shuffle_blocks(links.flatten(1, 2), generator), asked
