"""A trace of tool calls: agent, tool and result; the LATEST result of an agent with a tool is asked for.

One sequence of `ToolTrace(agents=2, tools=1, repeats=1, questions=2, length=20)`, agents from 0 ... 31, tools
from 32 ... 63 (the two halves of the keys), results from the values 64 ... 95, fillers (.) from 96 ... 119;
tr = the marker TRACE, 122, ask = the marker ASK, 123:

    position    0    1    2    3    4    5    6    7    8    9   10   11   12   13   14   15   16   17   18   19
    role       tr    .  agt tool  res    .  agt tool  res  agt tool  res    .  ask  agt tool  res  agt tool  res
    input     122  119   15   53   86  113   12   53   87   12   53   94  107  123   12   53   94   15   53   86
    label    -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100   94 -100 -100   86

Agent and tool are one key of two tokens: every agent of a sequence calls every tool of it at least once, so the
same agent with another tool and the same tool with another agent are there to mislead. `repeats` more calls, of
pairs drawn at random, give a result that differs from the one before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from echo_ska.tasks.alphabet import Alphabet, Marker
from echo_ska.tasks.base import RecallBatch, draw_distinct, require_integer
from echo_ska.tasks.layout import StoredThenAsked, require_at_most


@dataclass(frozen=True, kw_only=True)
class ToolTrace(StoredThenAsked):
    """The latest result of a call, by agent and tool.

    Attributes:
        agents: agents in a sequence, distinct.
        tools: tools in a sequence, distinct.
        repeats: calls beyond the first of each pair of agent and tool.
        questions: pairs asked for, each once, after the log.
        length, vocab_size, num_keys, num_values: see `AlphabetTask`.

    Raises:
        ValueError: for settings that cannot be met.

    Chance is 1 / num_values; results of different pairs are independent. Knowing which results are the latest of
    some pair, but not of which, gives over 1 / (agents * tools).
    """

    opening: ClassVar[int] = 1

    length: int = 128
    agents: int = 3
    tools: int = 3
    repeats: int = 4
    questions: int = 4

    def _check(self, alphabet: Alphabet) -> None:
        require_integer("agents", self.agents, 1)
        require_integer("tools", self.tools, 1)
        require_integer("repeats", self.repeats, 0)
        require_integer("questions", self.questions, 1)
        require_at_most("agents", self.agents, self.num_agents, "agents, the first half of the keys")
        require_at_most("tools", self.tools, self.num_keys - self.num_agents, "tools, the second half of the keys")
        require_at_most("questions", self.questions, self._pairs, "pairs of agent and tool, each asked for once")

    @property
    def num_agents(self) -> int:
        """Agents to draw from, the first half of the keys; the others are tools."""
        return self.num_keys // 2

    @property
    def _pairs(self) -> int:
        return self.agents * self.tools

    @property
    def _contents(self) -> str:
        return f"{self._pairs + self.repeats} calls, {self.questions} questions and their markers"

    @property
    def stored_shape(self) -> tuple[int, int]:
        """Agent, tool, result."""
        return self._pairs + self.repeats, 3

    @property
    def asked_shape(self) -> tuple[int, int]:
        """Agent, tool, result."""
        return self.questions, 3

    def sample(self, batch_size: int, generator: torch.Generator) -> RecallBatch:
        """Draw input_ids and labels, int64 [batch_size, length]; see `RecallTask.sample`."""
        batch = super().sample(batch_size, generator)
        batch.input_ids[:, 0] = self.alphabet.marker(Marker.TRACE)
        batch.input_ids[:, -3 * self.questions - 1] = self.alphabet.marker(Marker.ASK)  # of the pause
        return batch

    def _draw(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        pairs, calls = self._pairs, self._pairs + self.repeats
        agents = draw_distinct(batch_size, self.agents, self.num_agents, generator)
        tools = self.num_agents + draw_distinct(batch_size, self.tools, self.num_keys - self.num_agents, generator)
        names = torch.stack(  # [B, pairs, 2]
            [agents.repeat_interleave(self.tools, dim=1), tools.repeat(1, self.agents)], dim=-1
        )
        once = torch.arange(pairs).expand(batch_size, pairs)
        again = torch.randint(pairs, (batch_size, self.repeats), generator=generator)
        order = draw_distinct(batch_size, calls, calls, generator)
        called = torch.cat([once, again], dim=1).gather(1, order)  # [B, calls]: which pair, in the order of the log

        # Pair by pair, each pair's calls in order: a sum of uniform steps (modulo the values) that are never 0
        # within a pair. So a pair begins anywhere, whatever the others, and never repeats its last result.
        grouped, origin = called.sort(dim=1, stable=True)
        steps = torch.randint(1, self.num_values, (batch_size, calls), generator=generator)
        first = torch.ones_like(grouped, dtype=torch.bool)
        first[:, 1:] = grouped[:, 1:] != grouped[:, :-1]
        begins = torch.randint(self.num_values, (batch_size, calls), generator=generator)
        results = self.alphabet.first_value + torch.where(first, begins, steps).cumsum(dim=1) % self.num_values
        last = torch.searchsorted(grouped, once.contiguous(), right=True) - 1
        latest = torch.cat([names, results.gather(1, last)[:, :, None]], dim=-1)  # [B, pairs, 3]

        log = names.gather(1, called[:, :, None].expand(-1, -1, 2))
        in_order = torch.empty_like(results).scatter_(1, origin, results)
        asked = draw_distinct(batch_size, self.questions, pairs, generator)
        questions = latest.gather(1, asked[:, :, None].expand(-1, -1, 3))
        return torch.cat([log, in_order[:, :, None]], dim=-1), questions
