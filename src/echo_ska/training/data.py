"""Where batches come from. A batch is a function of (seed, step), so resuming needs no iterator state."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from echo_ska.tasks import RecallTask


class DataSource(Protocol):
    """Anything that can draw the batch of a step.

    One process that takes its batches whole calls `batch(step)` alone: a source of your own may leave the other two
    arguments out until it is trained on by several processes, or in pieces. One that knows how many token ids there
    are states it as `vocab_size`, to which models are held before the first step (`require_vocabulary`).
    """

    def batch(self, step: int, part: int = 0, parts: int = 1) -> dict[str, Tensor]:
        """Part `part` (from 0) of the batch of step `step` (from 0), on the CPU, the same at every call.

        The `parts` parts together are the batch. They may be of unequal size and hold unequal numbers of labels.

        Returns:
            `input_ids` [B, T] int64 and `labels` [B, T] int64. Labels are aligned as in Hugging Face:
            `labels[b, t]` is the token AT t, -100 where nothing is scored, and the model shifts. For a model of
            vectors instead of tokens, `inputs_embeds` [B, T, any] and whatever labels it takes.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """What determines the batches, for JSON: recorded with a run, and compared before one is resumed."""
        ...


def require_vocabulary(model: nn.Module, data: DataSource) -> None:
    """Raise ValueError where the data has more token ids than the model knows; nothing where one does not say."""
    known = getattr(getattr(model, "config", None), "vocab_size", None)
    ids = getattr(data, "vocab_size", None)
    if known is not None and ids is not None and known < ids:
        raise ValueError(
            f"The model knows {known:,} token ids and {type(data).__name__} has {ids:,}: build the model with a "
            f"vocab_size of at least {ids}."
        )


class RecallData:
    """Batches of a recall task.

    Args:
        task: the task to sample.
        batch_size: sequences in a batch B, at least 1.
        seed: any integer; other seeds give independent batches.
        length: tokens in a sequence T, instead of the task's own; raises ValueError where the task does not
            fit.
    """

    def __init__(self, task: RecallTask, batch_size: int, seed: int, length: int | None = None) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        self.task = task if length is None else task.with_length(length)
        self.batch_size = batch_size
        self.seed = seed
        self.vocab_size = self.task.vocab_size

    def batch(self, step: int, part: int = 0, parts: int = 1) -> dict[str, Tensor]:
        """Part `part` of step `step` (see `rows_of_part`): `input_ids` and `labels`, int64 [B / parts, T]."""
        sampled = self.task.sample(self.batch_size, step_generator(self.seed, step))
        return rows_of_part({"input_ids": sampled.input_ids, "labels": sampled.labels}, part, parts)

    def describe(self) -> dict[str, Any]:
        """The task's name and settings, the batch size and the seed; tasks in a mixture are described likewise."""
        return {**_plain(self.task), "batch_size": self.batch_size, "seed": self.seed}


class RecallSchedule:
    """Batches of several recall tasks, of other lengths if need be: every step's batch is of one task, drawn by weight.

    Args:
        parts: (task, batch_size, weight) each; weights are positive and need not add up to anything.
        seed: any integer; other seeds give independent batches.

    Raises:
        ValueError: there are no parts, or a weight or a batch size is out of range.
    """

    def __init__(self, parts: Sequence[tuple[RecallTask, int, float]], seed: int) -> None:
        if not parts or not all(0 < weight < float("inf") for _, _, weight in parts):
            raise ValueError("parts must be triples of a task, a batch size and a positive weight, at least one.")
        self.sources = [RecallData(task, batch_size, seed) for task, batch_size, _ in parts]
        self.weights = torch.tensor([weight for _, _, weight in parts], dtype=torch.float64)
        self.seed = seed
        self.vocab_size = max(source.vocab_size for source in self.sources)

    def batch(self, step: int, part: int = 0, parts: int = 1) -> dict[str, Tensor]:
        """As `RecallData.batch`, of the task that was drawn for step `step`."""
        drawn = torch.Generator().manual_seed(step_seed("schedule", self.seed, step))
        return self.sources[int(torch.multinomial(self.weights, 1, generator=drawn))].batch(step, part, parts)

    def describe(self) -> dict[str, Any]:
        """Every part as `RecallData` describes it, with its weight."""
        parts = zip(self.sources, self.weights.tolist(), strict=True)
        return {"schedule": [source.describe() | {"weight": weight} for source, weight in parts], "seed": self.seed}


def rows_of_part(batch: dict[str, Tensor], part: int, parts: int) -> dict[str, Tensor]:
    """Rows `part`, `part + parts`, ... of every tensor of a batch, [B / parts, ...].

    Raises:
        ValueError: see `require_part`.
    """
    rows = len(next(iter(batch.values())))
    require_part(rows, part, parts)
    if parts == 1:
        return batch
    return {name: tensor[part::parts].contiguous() for name, tensor in batch.items()}


def require_part(rows: int, part: int, parts: int) -> None:
    """Raise ValueError where a batch of `rows` cannot be divided by `parts`, or `part` is not one of them."""
    if not 0 <= part < parts:
        raise ValueError(f"part must be at least 0 and below parts, got {part} of {parts}.")
    if rows % parts:
        raise ValueError(
            f"A batch of {rows} cannot be divided into {parts} equal parts, one for each process and each piece that "
            f"it accumulates: take a batch size that is a multiple of {parts}."
        )


def describe_task(task: RecallTask) -> dict[str, Any]:
    """A task's name and settings as JSON gives them back."""
    described: dict[str, Any] = _plain(task)
    return described


def _plain(value: Any) -> Any:
    """A setting of a task, or a task with its name and settings, in what JSON gives back unchanged."""
    if isinstance(value, RecallTask):
        fields: tuple[Any, ...] = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
        return {"task": type(value).__name__, **{field.name: _plain(getattr(value, field.name)) for field in fields}}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value


def step_generator(seed: int, step: int) -> torch.Generator:
    """A CPU generator for one step of one seed. See `step_seed`."""
    return torch.Generator().manual_seed(step_seed("data", seed, step))


def step_seed(purpose: str, seed: int, step: int) -> int:
    """A number of 63 bits that depends on all three, so that no two seeds, steps or purposes share a random
    stream.

    `seed + step` would make seed 1 repeat seed 0 one step later; a hash has no such structure. (torch's CPU
    generator uses 32 of the bits: two steps of a long run may still meet by chance, about one pair in 90,000
    steps.)
    """
    digest = hashlib.blake2b(f"{purpose}/{seed}/{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
