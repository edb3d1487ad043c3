"""Multi-query associative recall (MQAR) as Zoology defines it.

Key-value pairs open the sequence; each key is asked for once, somewhere later, and its value must be
predicted there. The answer is not written after its query: noise (.) stands there, and wherever there is
neither a pair nor a query. One sequence of `MultiQueryRecall(vocab_size=12, length=16, pairs=2)`, keys
from 1 ... 5 and values from 6 ... 11:

    position    0    1    2    3    4    5    6    7    8    9   10   11   12   13   14   15
    role      key  val  key  val  ask    .    .    .    .    .  ask    .    .    .    .    .
    input       5    8    3    9    3    2    9    5    5   11    5    9    6    9    5    4
    label    -100 -100 -100 -100 -100    9 -100 -100 -100 -100 -100    8 -100 -100 -100 -100

A query's label stands one position after it, where Hugging Face's shift scores it against the logits AT
the query. Slots for queries are the even offsets after the pairs, (length - 2 pairs) / 2 of them; key 1
draws slot i (counted from 1) with probability proportional to 1 / i^0.99, key 2 does so among the slots
left, and so on. Noise is uniform over the WHOLE vocabulary and so may look like keys and values, as at
positions 6, 7 and 8.

Zoology's generator returns x[:-1] as inputs and y[1:] as labels, for x and y of length + 1 tokens, and
its loss does not shift. Here the model shifts, so the same task is x[:-1] and y[:-1]. What y loses at its
end is never a label: the length is even, so the last slot is at length - 2 and its answer at length - 1.
Inputs, scored logits and targets are the same, one for one.
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

SLOT_EXPONENT = 0.99


@dataclass(frozen=True)
class MultiQueryRecall(RecallTask):
    """Zoology's MQAR (Arora et al. 2023, arXiv 2312.04927, section 4 and their published generator).

    Attributes:
        vocab_size: tokens; keys are 1 ... vocab_size // 2 - 1, values the upper half.
        length: tokens in a sequence, even, at least 4 per pair.
        pairs: key-value pairs, keys distinct and values distinct within a sequence; each is asked for once.

    Raises:
        ValueError: for settings that cannot be met. (Zoology also refuses a vocabulary that is not larger
            than the length, which nothing in the task needs.)
    """

    vocab_size: int = 8192
    length: int = 64
    pairs: int = 4

    def __post_init__(self) -> None:
        require_integer("vocab_size", self.vocab_size, 4)
        require_integer("length", self.length, 4)
        require_integer("pairs", self.pairs, 1)
        if self.length % 2:
            raise ValueError(
                f"length must be even, since tokens come in twos, got {self.length}: use {self.length + 1}."
            )
        if 4 * self.pairs > self.length:
            raise ValueError(
                f"{self.pairs} pairs need a length of at least {4 * self.pairs} (two tokens to store a "
                f"pair, two to ask for it), got {self.length}: use at most {self.length // 4} pairs or "
                "a longer sequence."
            )
        if self.pairs > self.num_keys:
            raise ValueError(
                f"{self.pairs} pairs need as many distinct keys, but a vocabulary of {self.vocab_size} has "
                f"{self.num_keys}: use a vocab_size of at least {2 * (self.pairs + 1)} or fewer pairs."
            )

    @property
    def num_keys(self) -> int:
        """Keys to draw from: the lower half of the vocabulary without token 0."""
        return self.vocab_size // 2 - 1

    @property
    def num_values(self) -> int:
        """Values to draw from: the upper half of the vocabulary."""
        return self.vocab_size - self.vocab_size // 2

    @property
    def chance(self) -> float:
        """1 / num_values. Knowing which values were stored, but not under which key, gives 1 / pairs."""
        return 1 / self.num_values

    def sample(self, batch_size: int, generator: torch.Generator) -> RecallBatch:
        """Draw input_ids and labels, int64 [batch_size, length]; see `RecallTask.sample`."""
        require_request(batch_size, generator)
        stored = 2 * self.pairs
        keys = 1 + draw_distinct(batch_size, self.pairs, self.num_keys, generator)  # [B, pairs]
        values = self.vocab_size // 2 + draw_distinct(batch_size, self.pairs, self.num_values, generator)
        queries = stored + 2 * self._draw_slots(batch_size, generator)  # [B, pairs] positions

        input_ids = torch.randint(self.vocab_size, (batch_size, self.length), generator=generator)
        input_ids[:, 0:stored:2] = keys
        input_ids[:, 1:stored:2] = values
        input_ids.scatter_(1, queries, keys)
        labels = torch.full_like(input_ids, IGNORED).scatter_(1, queries + 1, values)
        return RecallBatch(input_ids, labels)

    def roles(self, batch: RecallBatch) -> list[list[str]]:
        """ "key" and "val" in the pairs, then "ask" or "."; see `RecallTask.roles`."""
        stored = ["key", "val"] * self.pairs
        return [stored + row[len(stored) :] for row in super().roles(batch)]

    def with_length(self, length: int) -> Self:
        """The same pairs and vocabulary in `length` tokens; raises ValueError where they do not fit."""
        return replace(self, length=length)

    def _draw_slots(self, batch_size: int, generator: torch.Generator) -> torch.Tensor:
        """Distinct slots, counted from 0: int64 [B, pairs], in the order drawn.

        A race: exponential waiting times with the slots' weights as rates finish in the order in which
        successive weighted draws without replacement pick them. Float64, since float32 is too coarse for the
        small chances of far slots; not `exponential_`, whose numbers differ between builds of torch.
        """
        slots = (self.length - 2 * self.pairs) // 2
        uniform = torch.rand(batch_size, slots, dtype=torch.float64, generator=generator)
        waiting = uniform.neg_().log1p_().neg_()  # exponential, rate 1
        waiting *= torch.arange(1, slots + 1, dtype=torch.float64) ** SLOT_EXPONENT  # divided by its rate
        return waiting.topk(self.pairs, dim=1, largest=False, sorted=True).indices
