"""A step's batch in parts: which of them are this process's, and how much each counts."""

from __future__ import annotations

import inspect

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

    Raises:
        ValueError: there are several and `data` draws whole batches alone.
    """

    def __init__(self, data: DataSource, processes: Processes, accumulate: int) -> None:
        self.data = data
        self.processes = processes
        self.total = processes.size * accumulate
        self.own = range(processes.rank, self.total, processes.size)
        takes = inspect.signature(data.batch).parameters
        several = {"part", "parts"} <= takes.keys() or any(taken.kind is taken.VAR_KEYWORD for taken in takes.values())
        if self.total > 1 and not several:
            raise ValueError(
                f"{type(data).__name__} draws whole batches alone, and a batch was to be divided into {self.total} "
                "parts: give its batch method the arguments part and parts, or train in one process without accumulate."
            )


def draw_parts(parts: Parts, step: int) -> list[tuple[int, dict[str, Tensor], float | None]]:
    """This process's parts of a step's batch, in order.

    Returns:
        Triples: the part's number; its batch; its share of the tokens that the whole batch scores, None where the
        part is the batch. A part without a scored token has share 0, and one label so that its loss is a number.

    Raises:
        ValueError: the whole batch, of tokens, has no scored one.
    """
    if parts.total == 1:
        batch = parts.data.batch(step)
        if "input_ids" in batch and not scored_tokens(batch["labels"]):
            raise _unscored(step)
        return [(0, batch, None)]
    failure: Exception | None = None
    drawn, scored = [], []
    try:
        for part in parts.own:
            batch = parts.data.batch(step, part=part, parts=parts.total)
            drawn.append((part, batch))
            scored.append(scored_tokens(batch["labels"]))
    except Exception as error:
        failure = error
    total, failed = parts.processes.sum([sum(scored), failure is not None])
    if failed:
        parts.processes.together(lambda: _raise(failure))
    if not total:
        raise _unscored(step)
    for (_, batch), count in zip(drawn, scored, strict=True):
        if count == 0:
            batch["labels"] = batch["labels"].clone()
            batch["labels"][:, 1:2] = 0
    return [(part, batch, count / total) for (part, batch), count in zip(drawn, scored, strict=True)]


def scored_tokens(labels: Tensor) -> int:
    """How many of `labels` [B, T] are scored, the first of a row being nobody's next; of real numbers, all."""
    if labels.is_floating_point():
        return labels.numel()
    return int((labels[:, 1:] != UNSCORED).sum())


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
