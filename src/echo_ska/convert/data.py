"""What a converted model is distilled on: windows of a text of tokens, and random tokens that come again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from echo_ska.training import DataSource
from echo_ska.training.data import rows_of_part, step_generator, step_seed
from echo_ska.training.text import digest


class TokenWindows:
    """Random windows of a text of tokens: what a converted model is distilled on.

    Args:
        tokens: [N], any integer dtype.
        batch_size: windows in a batch B.
        length: tokens in a window T.
        seed: any integer; other seeds give independent batches.

    Raises:
        ValueError: there are fewer tokens than a window takes, or a number is too small.
    """

    def __init__(self, tokens: Tensor, batch_size: int, length: int, seed: int) -> None:
        if batch_size < 1 or length < 2:
            raise ValueError(f"need batch_size >= 1 and length >= 2, got {batch_size} and {length}")
        if len(tokens) < length:
            raise ValueError(f"the text has {len(tokens)} tokens, less than one window of {length}: give more text")
        self.tokens, self.batch_size, self.length, self.seed = tokens, batch_size, length, seed

    def batch(self, step: int, part: int = 0, parts: int = 1) -> dict[str, Tensor]:
        """The windows of step `step`: `input_ids` and `labels` (equal: the model shifts), int64 [B / parts, T]."""
        generator = step_generator(self.seed, step)
        starts = torch.randint(len(self.tokens) - self.length + 1, (self.batch_size, 1), generator=generator)
        windows = self.tokens[starts + torch.arange(self.length)].long()
        return rows_of_part({"input_ids": windows, "labels": windows.clone()}, part, parts)

    def describe(self) -> dict[str, Any]:
        """Tokens and their checksum, the window and the seed."""
        return {
            "tokens": len(self.tokens),
            "blake2b": digest(self.tokens.long()),
            "batch_size": self.batch_size,
            "length": self.length,
            "seed": self.seed,
        }


class WithCopying:
    """Another source's batches, but for every so many-th, in which random tokens come again and again.

    A model trained on text alone for a few minutes has no reason to learn recall, and then none to lose. Every row
    draws a period of its own: attention that always looks equally far back is then no help.

    Args:
        source: gives all other batches, and the shape of these.
        vocab_size: tokens to draw from.
        seed: any integer; other seeds give independent batches.
        every: which batches copy: number `every` - 1, 2 `every` - 1, ...; at least 2.
        periods: the shortest and the longest; None is from 8 tokens (or half a shorter window) to half the window. With
            one period alone, looking that far back is enough, which softmax attention with positions learns soonest.

    Raises:
        ValueError: `every` is below 2, or periods are not ascending from 2.
    """

    def __init__(
        self,
        source: DataSource,
        vocab_size: int,
        seed: int,
        every: int = 4,
        periods: tuple[int, int] | None = None,
    ) -> None:
        if every < 2:
            raise ValueError(f"every must be at least 2, got {every}")
        if periods is not None and not 2 <= periods[0] <= periods[1]:
            raise ValueError(f"periods must be the shortest, at least 2, and the longest, got {periods}")
        self.source, self.vocab_size, self.every, self.seed = source, vocab_size, every, seed
        self.periods = periods

    def batch(self, step: int, part: int = 0, parts: int = 1) -> dict[str, Tensor]:
        """The batch of step `step`; see `copies`."""
        batch = self.source.batch(step)
        if step % self.every < self.every - 1:
            return rows_of_part(batch, part, parts)
        rows, length = batch["input_ids"].shape
        drawn = torch.Generator().manual_seed(step_seed("copy", self.seed, step))
        shortest, longest = self.periods or (min(8, length // 2), length // 2)
        periods = torch.randint(shortest, longest + 1, (rows,), generator=drawn)
        return rows_of_part(copies(length, periods, self.vocab_size, drawn), part, parts)

    def describe(self) -> dict[str, Any]:
        """The source, and how copying is mixed in."""
        return {
            "source": self.source.describe(),
            "copied_every": self.every,
            "vocab_size": self.vocab_size,
            "periods": None if self.periods is None else list(self.periods),
            "seed": self.seed,
        }


class ReadOn:
    """Another source's batches from a step on: what comes after a stage that read those before.

    Args:
        source: gives the batches.
        first_step: the step whose batch is the first here.
    """

    def __init__(self, source: DataSource, first_step: int) -> None:
        self.source, self.first_step = source, first_step

    def batch(self, step: int, part: int = 0, parts: int = 1) -> dict[str, Tensor]:
        """The source's batch of so many steps later."""
        return rows_of_part(self.source.batch(self.first_step + step), part, parts)

    def describe(self) -> dict[str, Any]:
        """The source, and where in it the first batch is."""
        return {**self.source.describe(), "first_step": self.first_step}


def copies(length: int, periods: Tensor, vocab_size: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Windows of uniformly drawn tokens that repeat: `input_ids` and `labels`, int64 [B, length].

    Only what repeats is scored: all but the first period and the token after it, which nothing announces.

    Args:
        length: tokens in a window.
        periods: of every row, [B] int64.
        vocab_size: tokens to draw from.
        generator: of the tokens.
    """
    drawn = torch.randint(vocab_size, (len(periods), int(periods.max())), generator=generator)
    places = torch.arange(length)
    ids = drawn.gather(1, places % periods[:, None])
    return {"input_ids": ids, "labels": ids.masked_fill(places <= periods[:, None], -100)}
