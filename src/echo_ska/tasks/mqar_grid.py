"""Multi-query associative recall over a gap: one cell of the Echo paper's grid of pairs x gaps.

Key-value pairs, then a gap of fillers that are neither keys nor values, then all pairs once more in
another order; the loss is at the second values alone. The paper's grid is pairs 4, 8, 16, 32 x gaps 64
... 4,096, with 32 values. One sequence of `MultiQueryRecallGrid(pairs=3, gap=4, vocab_size=20,
num_keys=8, num_values=8)`, keys from 0 ... 7, values from 8 ... 15, fillers (.) from 16 ... 19:

    position    0    1    2    3    4    5    6    7    8    9   10   11   12   13   14   15
    role      key  val  key  val  key  val    .    .    .    .  ask  val  ask  val  ask  val
    input       0   15    4   15    2   10   18   16   18   19    0   15    2   10    4   15
    label    -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100   15 -100   10 -100   15

Here the answer IS in the input, one position after its query, as in ordinary language modelling: the
label there is the input itself, and Hugging Face's shift scores it against the logits AT the query, which
have not seen it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch

from echo_ska.tasks.base import (
    IGNORED,
    RecallBatch,
    RecallTask,
    draw_distinct,
    require_integer,
    require_request,
)


@dataclass(frozen=True)
class MultiQueryRecallGrid(RecallTask):
    """MQAR with a filler gap (Sridhar & Johansen, arXiv 2605.06997; a sequence has 4 pairs + gap tokens).

    Values are drawn WITH replacement: each answer is then uniform whatever was answered before, so that
    nothing is gained by ruling out values already used (the last of 32 pairs with 32 values would be
    certain), and the number of pairs is not bound by the number of values.

    Attributes:
        pairs: key-value pairs M, keys distinct within a sequence.
        gap: filler tokens between the pairs and the queries, drawn uniformly.
        vocab_size: tokens: first the keys, then the values, then the fillers, which are all that remain.
        num_keys: keys to draw from.
        num_values: values to draw from.

    Raises:
        ValueError: for settings that cannot be met.
    """

    pairs: int = 8
    gap: int = 32
    vocab_size: int = 128
    num_keys: int = 64
    num_values: int = 32

    def __post_init__(self) -> None:
        require_integer("pairs", self.pairs, 1)
        require_integer("gap", self.gap, 0)
        require_integer("vocab_size", self.vocab_size, 2)
        require_integer("num_keys", self.num_keys, 1)
        require_integer("num_values", self.num_values, 1)
        if self.pairs > self.num_keys:
            raise ValueError(
                f"{self.pairs} pairs need as many distinct keys, got num_keys={self.num_keys}: use at most "
                f"{self.num_keys} pairs or more keys."
            )
        needed = self.num_keys + self.num_values + min(self.gap, 1)
        if self.vocab_size < needed:
            raise ValueError(
                f"{self.num_keys} keys, {self.num_values} values and fillers for a gap of {self.gap} need a "
                f"vocab_size of at least {needed}, got {self.vocab_size}: enlarge it or use fewer of them."
            )

    @property
    def length(self) -> int:
        """Tokens in a sequence, 4 pairs + gap."""
        return 4 * self.pairs + self.gap

    @property
    def chance(self) -> float:
        """1 / num_values. Knowing which values were stored, but not under which key, gives over 1 / pairs."""
        return 1 / self.num_values

    def sample(self, batch_size: int, generator: torch.Generator) -> RecallBatch:
        """Draw input_ids and labels, int64 [batch_size, length]; see `RecallTask.sample`."""
        require_request(batch_size, generator)
        stored, asked = 2 * self.pairs, 2 * self.pairs + self.gap
        first_filler = self.num_keys + self.num_values
        shape = (batch_size, self.pairs)
        keys = draw_distinct(*shape, self.num_keys, generator)  # [B, pairs]
        values = torch.randint(self.num_keys, first_filler, shape, generator=generator)
        order = draw_distinct(*shape, self.pairs, generator)
        answers = values.gather(1, order)

        input_ids = torch.empty(batch_size, self.length, dtype=torch.int64)
        input_ids[:, 0:stored:2] = keys
        input_ids[:, 1:stored:2] = values
        if self.gap:
            input_ids[:, stored:asked].random_(first_filler, self.vocab_size, generator=generator)
        input_ids[:, asked::2] = keys.gather(1, order)
        input_ids[:, asked + 1 :: 2] = answers
        labels = torch.full_like(input_ids, IGNORED)
        labels[:, asked + 1 :: 2] = answers
        return RecallBatch(input_ids, labels)

    def roles(self, batch: RecallBatch) -> list[list[str]]:
        """ "key" and "val" in the pairs, "ask" and "val" in the questions, "." between; see `RecallTask.roles`."""
        row = ["key", "val"] * self.pairs + ["."] * self.gap + ["ask", "val"] * self.pairs
        return [list(row) for _ in batch.input_ids]

    def with_length(self, length: int) -> Self:
        """The same pairs and tokens, the gap chosen to make `length`; raises ValueError if too short."""
        require_integer("length", length, 1)
        if length < 4 * self.pairs:
            raise ValueError(
                f"{self.pairs} pairs need a length of at least {4 * self.pairs} (two tokens to store a "
                f"pair, two to ask for it), got {length}: use fewer pairs or a longer sequence."
            )
        return replace(self, gap=length - 4 * self.pairs)
