"""A step's batch in parts: which of them are this process's, and how much each counts."""

from __future__ import annotations

import inspect
from typing import NamedTuple

from torch import Tensor

from echo_ska.training.data import DataSource
from echo_ska.training.processes import Processes, shared

UNSCORED = -100


class Parts:
    """The parts of every batch that this process takes: `rank`, `rank + size`, ... of `size * accumulate`.

    Args:
        data: what draws them.
        processes: who takes the others.
        accumulate: how many this process takes, one after the other.
        whole: every process takes all of `accumulate` parts, and cuts their sequences afterwards.

    Raises:
        ValueError: there are several and `data` draws whole batches alone.
    """

    def __init__(self, data: DataSource, processes: Processes, accumulate: int, whole: bool = False) -> None:
        self.data = data
        self.processes = processes
        self.total = accumulate if whole else processes.size * accumulate
        self.own = range(accumulate) if whole else range(processes.rank, self.total, processes.size)
        takes = inspect.signature(data.batch).parameters
        several = {"part", "parts"} <= takes.keys() or any(taken.kind is taken.VAR_KEYWORD for taken in takes.values())
        if self.total > 1 and not several:
            raise shared(
                ValueError(
                    f"{type(data).__name__} draws whole batches alone, and a batch was to be divided into {self.total} "
                    "parts: give its batch method the arguments part and parts, or train in one process without "
                    "accumulate."
                )
            )


class Part(NamedTuple):
    """A part of a step's batch.

    Attributes:
        number: which it is.
        batch: what is read, and its labels. A part without a scored token has one label, so that its loss is a number.
        share: of the tokens that the whole batch scores, 0 for such a part; None where the part is the batch.
        scored: share of its own tokens that are scored; 1 for what are no tokens.
    """

    number: int
    batch: dict[str, Tensor]
    share: float | None
    scored: float


def draw_parts(parts: Parts, step: int) -> list[Part]:
    """This process's parts of a step's batch, in order.

    Where every process takes all parts, each has an equal part of their shares: those of all processes add up to 1.

    Raises:
        ValueError: the whole batch, of tokens, has no scored one.
    """
    if parts.total * parts.processes.size == 1:
        batch = parts.data.batch(step)
        count = scored_tokens(batch["labels"]) if "input_ids" in batch else None
        if count == 0:
            raise _unscored(step)
        return [Part(0, batch, None, _scored_share(batch, count))]
    failure: Exception | None = None
    drawn, scored = [], []
    try:
        for number in parts.own:
            batch = (
                parts.data.batch(step, part=number, parts=parts.total) if parts.total > 1 else parts.data.batch(step)
            )
            drawn.append((number, batch))
            scored.append(scored_tokens(batch["labels"]))
    except Exception as error:
        failure = error
    total, failed = parts.processes.sum([sum(scored), failure is not None])
    if failed:
        parts.processes.together(lambda: _raise(failure))
    if not total:
        raise _unscored(step)
    return [
        Part(number, batch if count else _with_a_label(batch), count / total, _scored_share(batch, count))
        for (number, batch), count in zip(drawn, scored, strict=True)
    ]


def scored_tokens(labels: Tensor) -> int:
    """How many of `labels` [B, T] are scored, the first of a row being nobody's next; of real numbers, all."""
    if labels.is_floating_point():
        return labels.numel()
    return int((labels[:, 1:] != UNSCORED).sum())


def _with_a_label(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch with a scored token; the data source's own, which it may keep, stays as it is."""
    labels = batch["labels"].clone()
    labels[:, 1:2] = 0
    return batch | {"labels": labels}


def _scored_share(batch: dict[str, Tensor], count: int | None) -> float:
    return 1 if count is None or "input_ids" not in batch else count / batch["input_ids"].numel()


def _unscored(step: int) -> ValueError:
    return shared(
        ValueError(
            f"The batch of step {step} has no scored label (all are {UNSCORED}, or stand first in a row): give labels "
            "to some of its tokens, or longer rows."
        )
    )


def _raise(error: Exception | None) -> None:
    if error is not None:
        raise error
