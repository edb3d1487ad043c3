"""What every recall task shares: the batch, the base class, and how a model's answers are counted.

**Labels are aligned as Hugging Face aligns them.** `labels[b, t]` is the token AT position t of the
sequence, or -100 where nothing is scored, and a model's logits at position t - 1 are scored against it:
the model shifts, the task does not. An answer that follows its cue at position c therefore stands at
`labels[b, c + 1]` and is scored against the logits at c, whatever `input_ids[b, c + 1]` holds. A label at
position 0 is never scored.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

IGNORED = -100
"""The label of a position that is not scored; `torch.nn.functional.cross_entropy` skips it by default."""


@dataclass(frozen=True, eq=False)
class RecallBatch:
    """A batch of sequences and what is asked of them.

    Attributes:
        input_ids: [B, T] int64 tokens, what the model reads.
        labels: [B, T] int64, each answer at its own position (see above), -100 where nothing is scored.
    """

    input_ids: Tensor
    labels: Tensor

    def to(self, device: torch.device | str) -> RecallBatch:
        """The same batch on another device."""
        return RecallBatch(self.input_ids.to(device), self.labels.to(device))


class RecallTask(ABC):
    """Base of recall tasks: frozen dataclasses of settings, all of them with defaults.

    Settings that cannot be met raise ValueError when the task is made; the message says what to change.
    """

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of token ids: every token is in 0 ... vocab_size - 1."""

    @property
    @abstractmethod
    def length(self) -> int:
        """Tokens in one sequence, T."""

    @property
    @abstractmethod
    def chance(self) -> float:
        """Accuracy, in [0, 1], of the best predictor that reads nothing but the cue."""

    @abstractmethod
    def sample(self, batch_size: int, generator: torch.Generator) -> RecallBatch:
        """Draw `batch_size` independent sequences, on the CPU.

        Args:
            batch_size: number of sequences B, at least 1.
            generator: a CPU generator, which is advanced. From the same state it gives the same batch.

        Raises:
            ValueError: for a batch size below 1 or a generator of another device.
        """

    def roles(self, batch: RecallBatch) -> list[list[str]]:
        """What each token is there for, a word each [B][T]: "ask" where an answer follows, else what the task stores.

        Here "." for all the rest: a task that stores something says which tokens these are, in words of its drawing.
        """
        asked = torch.zeros_like(batch.labels, dtype=torch.bool)
        asked[:, :-1] = batch.labels[:, 1:] != IGNORED
        return [["ask" if cue else "." for cue in row] for row in asked.tolist()]

    @abstractmethod
    def with_length(self, length: int) -> Self:
        """The same task in sequences of `length` tokens; raises ValueError where it does not fit in."""


def answer_positions(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Where the answers stand: rows and positions, int64 [N] each, row by row.

    The logits that answer them are `logits[rows, positions - 1]`. Position 0 has no logits before it and is
    left out. `labels` [B, T] as in `RecallBatch`.
    """
    rows, before = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
    return rows, before + 1


def accuracy(logits: Tensor, labels: Tensor) -> tuple[int, int]:
    """Count the scored answers whose most likely token is right.

    Args:
        logits: [B, T, V], unshifted, as a causal language model returns them.
        labels: [B, T] as in `RecallBatch`, on the device of `logits`.

    Returns:
        (correct, total), so that batches add up; total is 0 where nothing is scored.

    Raises:
        ValueError: if the leading dimensions of the two differ.
    """
    if logits.dim() != 3 or logits.shape[:2] != labels.shape:
        raise ValueError(
            f"logits must be [B, T, V] over the labels' [B, T], got {tuple(logits.shape)} and {tuple(labels.shape)}."
        )
    rows, positions = answer_positions(labels)
    predicted = logits[rows, positions - 1].argmax(dim=-1)  # [N]
    return int((predicted == labels[rows, positions]).sum()), rows.numel()


def require_integer(name: str, value: object, least: int) -> None:
    """Raise ValueError unless `value` is an integer of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}.")


def require_request(batch_size: int, generator: torch.Generator) -> None:
    """Raise ValueError unless `sample` can serve this batch size and generator."""
    require_integer("batch_size", batch_size, 1)
    if generator.device.type != "cpu":
        raise ValueError(
            "generator must be a CPU generator, so that a seed means the same batch everywhere, got one on "
            f"{generator.device}: sample with torch.Generator() and move the batch with .to(device)."
        )


def draw_distinct(rows: int, count: int, choices: int, generator: torch.Generator) -> Tensor:
    """Uniform draws without replacement: int64 [rows, count], each row distinct numbers of 0 ... choices - 1.

    Every ordered row is equally likely; `count` = `choices` gives permutations. Needs count <= choices.
    """
    if choices <= 8 * count:
        noise = torch.rand(rows, choices, dtype=torch.float64, generator=generator)
        return noise.topk(count, dim=1).indices
    # From many choices, redrawing the few repeats is several times faster than ranking them all. It is
    # uniform: nothing in it tells one number from another, so all distinct rows must be equally likely.
    drawn = torch.randint(choices, (rows, count), generator=generator)
    while True:
        ordered, origin = drawn.sort(dim=1, stable=True)
        repeats = torch.zeros_like(drawn, dtype=torch.bool)
        repeats.scatter_(1, origin[:, 1:], ordered[:, 1:] == ordered[:, :-1])  # the first of each is kept
        number = int(repeats.sum())
        if number == 0:
            return drawn
        drawn[repeats] = torch.randint(choices, (number,), generator=generator)
