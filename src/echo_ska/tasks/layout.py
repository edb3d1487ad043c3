"""What the tasks of the shared alphabet have in common: their settings, and how most of them are laid out.

    position   0 ...                                        ... length - 1
               . [block] . . [block] [block] . . . .   [question][question]

Blocks (pairs, calls, links) stand at random places among fillers (.), then come the questions. The last two
tokens before the questions are never of a block, so that no block reaches into the two tokens before a cue:
what stands there says nothing about the answer.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from echo_ska.tasks.alphabet import Alphabet
from echo_ska.tasks.base import IGNORED, RecallBatch, RecallTask, draw_distinct, require_integer, require_request

PAUSE = 2
"""Tokens between the blocks and the questions, at least."""


@dataclass(frozen=True, kw_only=True)
class AlphabetTask(RecallTask):
    """Base of tasks over the shared alphabet.

    Attributes:
        length: tokens in a sequence.
        vocab_size: tokens in all; with the next two, see `Alphabet`.
        num_keys: keys to draw from.
        num_values: values to draw from.

    Raises:
        ValueError: for settings that cannot be met.
    """

    length: int = 64
    vocab_size: int = 128
    num_keys: int = 64
    num_values: int = 32

    def __post_init__(self) -> None:
        require_integer("length", self.length, 1)
        self._check(self.alphabet)
        if self.length < self.least_length:
            raise ValueError(
                f"{self._contents} need a length of at least {self.least_length}, got {self.length}: use a longer "
                "sequence or fewer of them."
            )

    @property
    def alphabet(self) -> Alphabet:
        """Which tokens are keys, values, fillers and markers."""
        return Alphabet(self.vocab_size, self.num_keys, self.num_values)

    @property
    def chance(self) -> float:
        """1 / num_values: the answer is a value, uniform whatever the cue."""
        return 1 / self.num_values

    def roles(self, batch: RecallBatch) -> list[list[str]]:
        """ "ask" where an answer follows, else the token's word in `Alphabet.words`; see `RecallTask.roles`."""
        words = self.alphabet.words
        return [
            [role if role == "ask" else words[token] for role, token in zip(row, tokens, strict=True)]
            for row, tokens in zip(super().roles(batch), batch.input_ids.tolist(), strict=True)
        ]

    def with_length(self, length: int) -> Self:
        """The same task among more or fewer fillers; raises ValueError where `length` is too short."""
        return replace(self, length=length)

    @property
    @abstractmethod
    def least_length(self) -> int:
        """The fewest tokens that hold the task."""

    @property
    @abstractmethod
    def _contents(self) -> str:
        """What takes up the length, as in "4 needles": a plural."""

    @abstractmethod
    def _check(self, alphabet: Alphabet) -> None:
        """Raise ValueError unless the task's own settings can be met."""


@dataclass(frozen=True, kw_only=True)
class StoredThenAsked(AlphabetTask):
    """Base of tasks that are laid out as above."""

    opening: ClassVar[int] = 0
    """Tokens at the start that are of no block."""

    @property
    @abstractmethod
    def stored_shape(self) -> tuple[int, int]:
        """Blocks in a sequence, and tokens in a block."""

    @property
    @abstractmethod
    def asked_shape(self) -> tuple[int, int]:
        """Questions in a sequence, and tokens in a question with its answer."""

    @property
    def scored(self) -> int:
        """How many tokens at a question's end are answers, each to what stands before it."""
        return 1

    @property
    def least_length(self) -> int:
        """All blocks and questions, the opening and the pause."""
        blocks, width = self.stored_shape
        questions, tokens = self.asked_shape
        return self.opening + blocks * width + PAUSE + questions * tokens

    @abstractmethod
    def _draw(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Blocks [B, blocks, width] in the order in which they shall stand, and questions [B, questions, tokens]."""

    def sample(self, batch_size: int, generator: torch.Generator) -> RecallBatch:
        """Draw input_ids and labels, int64 [batch_size, length]; see `RecallTask.sample`."""
        require_request(batch_size, generator)
        count, width = self.stored_shape
        questions, tokens = self.asked_shape
        asked = self.length - questions * tokens
        blocks, ask = self._draw(batch_size, generator)

        input_ids = self.alphabet.draw_fillers((batch_size, self.length), generator)
        room = asked - PAUSE - self.opening
        starts = self.opening + place_blocks(batch_size, count, width, room, generator)
        positions = starts[:, :, None] + torch.arange(width)  # [B, blocks, width]
        input_ids.scatter_(1, positions.flatten(1), blocks.flatten(1))
        input_ids[:, asked:] = ask.flatten(1)
        labels = torch.full_like(input_ids, IGNORED)
        labels[:, asked:].view(batch_size, questions, tokens)[:, :, -self.scored :] = ask[:, :, -self.scored :]
        return RecallBatch(input_ids, labels)


def place_blocks(rows: int, count: int, width: int, room: int, generator: torch.Generator) -> Tensor:
    """Where `count` blocks of `width` tokens begin among `room` tokens: int64 [rows, count], ascending.

    No two overlap, and every such placement is equally likely. Needs count * width <= room.
    """
    slots = draw_distinct(rows, count, room - count * (width - 1), generator)  # each block shrunk to one token
    return slots.sort(dim=1).values + torch.arange(count) * (width - 1)


def shuffle_blocks(blocks: Tensor, generator: torch.Generator) -> Tensor:
    """Blocks [B, blocks, width] in another order, drawn for each sequence."""
    rows, count, _ = blocks.shape
    order = draw_distinct(rows, count, count, generator)  # [B, blocks]
    return blocks.gather(1, order[:, :, None].expand_as(blocks))


def require_at_most(name: str, value: int, most: int, what: str) -> None:
    """Raise ValueError if `value` is above `most`; `what` says what there is so much of."""
    if value > most:
        raise ValueError(f"{name} must be at most {most}, since there are {most} {what}, got {value}.")
