"""Several tasks at once: each sequence of a batch is of one of them, drawn by weight.

`RecallMixture()` is system prompts with easy and with hard gaps, and tool traces: what a model learns before it is
asked the other tasks of the same alphabet. Three rows of a batch might be

    row    0    a system prompt, easy gaps
    row    1    a tool trace
    row    2    a system prompt, hard gaps

all of one length, each drawn as its own task draws it (the tasks draw their sequences).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch

from echo_ska.tasks.base import IGNORED, RecallBatch, RecallTask, require_request
from echo_ska.tasks.layout import AlphabetTask
from echo_ska.tasks.system_prompt import SystemPrompt
from echo_ska.tasks.tool_trace import ToolTrace

CURRICULUM: tuple[tuple[RecallTask, float], ...] = (
    (SystemPrompt(gaps="easy"), 1.0),
    (SystemPrompt(gaps="hard"), 1.0),
    (ToolTrace(), 2.0),
)
"""As many system prompts as tool traces; half of the prompts have easy gaps."""


@dataclass(frozen=True)
class RecallMixture(RecallTask):
    """Tasks and their weights.

    Attributes:
        parts: (task, weight) in any number. The tasks are equally long (`task.with_length` makes them so) and
            share their token ids; weights are positive and need not add up to anything.

    Raises:
        ValueError: for parts that are no such pairs, or tasks of unequal length.
    """

    parts: tuple[tuple[RecallTask, float], ...] = CURRICULUM

    def __post_init__(self) -> None:
        try:
            parts = tuple((task, weight) for task, weight in self.parts)
            sound = all(isinstance(task, RecallTask) and 0 < weight < float("inf") for task, weight in parts)
        except (TypeError, ValueError):
            parts, sound = (), False
        if not (parts and sound):
            raise ValueError(f"parts must be pairs of a task and a positive weight, at least one, got {self.parts!r}.")
        if len(lengths := {task.length for task, _ in parts}) > 1:
            raise ValueError(
                f"The tasks of a mixture must be equally long, got {', '.join(map(str, sorted(lengths)))} tokens: "
                "use task.with_length(length)."
            )
        object.__setattr__(self, "parts", parts)  # tuples, whatever sequences were given: hashable and frozen

    @property
    def vocab_size(self) -> int:
        """The largest of the tasks'."""
        return max(task.vocab_size for task, _ in self.parts)

    @property
    def length(self) -> int:
        """The tasks' common length."""
        return self.parts[0][0].length

    @property
    def chance(self) -> float:
        """The tasks' chances, weighted by how often they are drawn and how many answers a sequence of each has.

        The number of answers is counted in one sequence of each task; it is the same in all of them.
        """
        answers = chances = 0.0
        for task, weight in self.parts:
            labels = task.sample(1, torch.Generator().manual_seed(0)).labels
            asked = weight * int((labels != IGNORED).sum())
            answers, chances = answers + asked, chances + asked * task.chance
        return chances / answers

    def sample(self, batch_size: int, generator: torch.Generator) -> RecallBatch:
        """Draw input_ids and labels, int64 [batch_size, length]; see `RecallTask.sample`."""
        require_request(batch_size, generator)
        weights = torch.tensor([weight for _, weight in self.parts], dtype=torch.float64)
        bounds = (weights / weights.sum()).cumsum(0)[:-1]
        drawn = torch.rand(batch_size, dtype=torch.float64, generator=generator)
        part = torch.searchsorted(bounds, drawn, right=True)  # [B], which part each row is of
        input_ids = torch.empty(batch_size, self.length, dtype=torch.int64)
        labels = torch.empty_like(input_ids)
        for number, (task, _) in enumerate(self.parts):
            rows = (part == number).nonzero().flatten()
            if len(rows):
                batch = task.sample(len(rows), generator)
                input_ids[rows], labels[rows] = batch.input_ids, batch.labels
        return RecallBatch(input_ids, labels)

    def roles(self, batch: RecallBatch) -> list[list[str]]:
        """As the tasks tell them, where all are of one alphabet; else "ask" and "." alone, see `RecallTask.roles`.

        Which task a row is of is not stored: what a token is for follows from the token.
        """
        alphabets = {task.alphabet if isinstance(task, AlphabetTask) else None for task, _ in self.parts}
        return super().roles(batch) if len(alphabets) > 1 or None in alphabets else self.parts[0][0].roles(batch)

    def with_length(self, length: int) -> Self:
        """The same tasks in `length` tokens each; raises ValueError where one does not fit."""
        return type(self)(tuple((task.with_length(length), weight) for task, weight in self.parts))
