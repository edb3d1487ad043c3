"""Orbit recall: keys with real dynamics. A walk over unseen states, then: where does it stand s steps after x?

Every sequence draws a cycle of its own over some of the state tokens. The walk follows it, long enough that each step
of the cycle is seen at least once; after a gap of fillers, states of the cycle are asked for the one that comes `steps`
later. Nothing but the order of the walk tells it, and one step of the order is all that neighbours show: from 2 steps
on the answer is a composition. One sequence of `OrbitRecall(states=4, walk=7, gap=2, queries=3, steps=2, vocab_size=14,
num_states=9)`, states from 0 ... 8, fillers (.) from 9 ... 13:

    position    0    1    2    3    4    5    6    7    8    9   10   11   12   13   14
    role     walk walk walk walk walk walk walk    .    .  ask    .  ask    .  ask    .
    input       0    3    5    1    0    3    5    9    9    3   11    1   10    0   12
    label    -100 -100 -100 -100 -100 -100 -100 -100 -100 -100    1 -100    3 -100    5

The answer is not written after its cue, a filler stands there: written, it would be a step of another walk. The label
stands at that position, where Hugging Face's shift scores it against the logits AT the cue.

A linear map from a state to its successor, fitted by least squares on the walk, answers by its power: this is the task
whose keys have the dynamics that a Koopman operator is said to use.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch

from echo_ska.tasks.base import IGNORED, RecallBatch, RecallTask, draw_distinct, require_integer, require_request


@dataclass(frozen=True)
class OrbitRecall(RecallTask):
    """Where a cycle stands `steps` after a state; a sequence has walk + gap + 2 queries tokens.

    Attributes:
        states: states of a sequence's cycle, more than `steps`.
        walk: tokens of the walk, at least states + 1, so that every step of the cycle is seen.
        gap: filler tokens between walk and questions.
        queries: states asked for, distinct, at most `states`.
        steps: from the state asked for to the answer.
        vocab_size: tokens: first the states, then the fillers, which are all that remain.
        num_states: states to draw cycles from.

    Raises:
        ValueError: for settings that cannot be met.
    """

    states: int = 12
    walk: int = 26
    gap: int = 22
    queries: int = 8
    steps: int = 1
    vocab_size: int = 128
    num_states: int = 64

    def __post_init__(self) -> None:
        for name, least in (("states", 2), ("gap", 0), ("queries", 1), ("steps", 1), ("num_states", 2)):
            require_integer(name, getattr(self, name), least)
        require_integer("walk", self.walk, self.states + 1)
        require_integer("vocab_size", self.vocab_size, self.num_states + 1)
        if self.states > self.num_states:
            raise ValueError(
                f"A cycle of {self.states} needs as many states, got num_states={self.num_states}: use at most "
                f"{self.num_states} states or more of them."
            )
        if self.steps >= self.states:
            raise ValueError(
                f"{self.steps} steps go round a cycle of {self.states}: use at most {self.states - 1} steps or a "
                "longer cycle."
            )
        if self.queries > self.states:
            raise ValueError(
                f"{self.queries} queries need as many distinct states, got states={self.states}: use at most "
                f"{self.states} queries."
            )

    @property
    def length(self) -> int:
        """Tokens in a sequence, walk + gap + 2 queries."""
        return self.walk + self.gap + 2 * self.queries

    @property
    def chance(self) -> float:
        """1 / (num_states - 1): any state but the one asked for. Knowing the cycle's states gives 1 / (states - 1)."""
        return 1 / (self.num_states - 1)

    def sample(self, batch_size: int, generator: torch.Generator) -> RecallBatch:
        """Draw input_ids and labels, int64 [batch_size, length]; see `RecallTask.sample`."""
        require_request(batch_size, generator)
        cycle = draw_distinct(batch_size, self.states, self.num_states, generator)  # [B, states], in the walk's order
        asked = draw_distinct(batch_size, self.queries, self.states, generator)  # [B, queries], places in the cycle
        cues = self.walk + self.gap + 2 * torch.arange(self.queries)

        input_ids = torch.randint(self.num_states, self.vocab_size, (batch_size, self.length), generator=generator)
        input_ids[:, : self.walk] = cycle[:, torch.arange(self.walk) % self.states]
        input_ids[:, cues] = cycle.gather(1, asked)
        labels = torch.full_like(input_ids, IGNORED)
        labels[:, cues + 1] = cycle.gather(1, (asked + self.steps) % self.states)
        return RecallBatch(input_ids, labels)

    def roles(self, batch: RecallBatch) -> list[list[str]]:
        """ "walk", then "ask" or "."; see `RecallTask.roles`."""
        return [["walk"] * self.walk + row[self.walk :] for row in super().roles(batch)]

    def with_length(self, length: int) -> Self:
        """The same walk and questions, the gap chosen to make `length`; raises ValueError if too short."""
        require_integer("length", length, 1)
        least = self.walk + 2 * self.queries
        if length < least:
            raise ValueError(
                f"A walk of {self.walk} and {self.queries} queries need a length of at least {least}, got {length}: "
                "use fewer queries, a shorter walk or a longer sequence."
            )
        return replace(self, gap=length - least)
