"""Variable tracking: one variable gets a value, the next one is set to it, and so on; what does the last one hold?

One sequence of `VariableTracking(chains=2, variables=2, questions=1, length=20)`, variables are the keys 0 ... 63,
values 64 ... 95, fillers (.) 96 ... 119; flw = the marker FOLLOW, 124:

    position    0    1    2    3    4    5    6    7    8    9   10   11   12   13   14   15   16   17   18   19
    role       to from    .    .    .    .   to from    .   to from    .   to from    .    .    .  flw  ask  val
    input      44   67  115  113  109  113   53   91   97    0   53   99   47   44  103  119  119  124    0   91
    label    -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100   91

`to from` is the assignment `to = from`. A chain is X1 = value, X2 = X1, X3 = X2, ..., in this order, as a program
runs; the chains are interleaved at random, and those that are not asked for distract. A filler follows each
assignment, so that it is plain which two belong together.

RULER's task asks for the names of all variables that hold a value. Here the value of a chain's LAST variable is
asked for, one token, so that an answer is right or wrong as a whole. `MultiHop` has its links in random order and
asks from the first key on: it must be walked at the question, while here each assignment can be carried out where
it stands.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from echo_ska.tasks.alphabet import Alphabet, Marker
from echo_ska.tasks.base import draw_distinct, require_integer
from echo_ska.tasks.layout import StoredThenAsked, require_at_most, shuffle_blocks


@dataclass(frozen=True, kw_only=True)
class VariableTracking(StoredThenAsked):
    """Chains of assignments (Hsieh et al. 2024, arXiv 2404.06654, RULER, variable tracking).

    Attributes:
        chains: chains, all with other variables; values are drawn with replacement.
        variables: variables of a chain, at least 1 (plain recall); variables - 1 hops lead from value to answer.
        questions: chains asked for, each once; the others distract.
        length, vocab_size, num_keys, num_values: see `AlphabetTask`.

    Raises:
        ValueError: for settings that cannot be met.

    Chance is 1 / num_values. Knowing the values, but not whose they are, gives over 1 / chains.
    """

    chains: int = 3
    variables: int = 3
    questions: int = 2

    def _check(self, alphabet: Alphabet) -> None:
        require_integer("chains", self.chains, 1)
        require_integer("variables", self.variables, 1)
        require_integer("questions", self.questions, 1)
        require_at_most("questions", self.questions, self.chains, "chains, and each is asked for once")
        if self.chains * self.variables > self.num_keys:
            raise ValueError(
                f"{self.chains} chains of {self.variables} variables need as many distinct keys, "
                f"{self.chains * self.variables}, got num_keys={self.num_keys}: use fewer of them or more keys."
            )

    @property
    def _contents(self) -> str:
        return f"{self.chains} chains of {self.variables} variables and {self.questions} questions"

    @property
    def stored_shape(self) -> tuple[int, int]:
        """To, from, filler."""
        return self.chains * self.variables, 3

    @property
    def asked_shape(self) -> tuple[int, int]:
        """The marker, a chain's last variable, its value."""
        return self.questions, 3

    def _draw(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        count, _ = self.stored_shape
        names = draw_distinct(batch_size, count, self.num_keys, generator).view(batch_size, self.chains, self.variables)
        values = self.alphabet.draw_values((batch_size, self.chains, 1), generator)
        fillers = self.alphabet.draw_fillers((batch_size, self.chains, self.variables), generator)
        sources = torch.cat([values, names[:, :, :-1]], dim=-1)
        statements = torch.stack([names, sources, fillers], dim=-1)  # [B, chains, variables, 3]

        # The places of a chain are those of any `variables` of a random order, taken in ascending order.
        order = draw_distinct(batch_size, count, count, generator).view(batch_size, self.chains, self.variables)
        places = order.sort(dim=-1).values.flatten(1)[:, :, None]  # [B, count, 1]
        blocks = torch.empty(batch_size, count, 3, dtype=torch.int64)
        blocks.scatter_(1, places.expand(-1, -1, 3), statements.flatten(1, 2))

        follow = torch.full_like(values, self.alphabet.marker(Marker.FOLLOW))
        ask = torch.cat([follow, names[:, :, -1:], values], dim=-1)
        return blocks, shuffle_blocks(ask, generator)[:, : self.questions]
