"""Resource economy: a ledger says who gets how much of what, and how much they have now is asked for.

One sequence of `ResourceEconomy(accounts=2, agents=2, resources=2, updates=1, most_added=3, length=26)`; agt =
agents, the lower half of the keys, 0 ... 31; rsc = resources, the upper half, 32 ... 63; amt = amounts, the values:
64 + n is the amount n, 0 ... 31; fillers (.) from 96 ... 119; add = the marker ADD, 126:

    position    0    1    2    3    4    5    6    7    8    9   10   11   12
    role        .    .  agt  rsc  amt    .  agt  rsc  amt  add  agt  rsc  amt
    input      98  107   12   32   88   96   15   32   81  126   15   32   66
    label    -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100

    position   13   14   15   16   17   18   19   20   21   22   23   24   25
    role        .    .  agt  rsc  amt    .    .  agt  rsc  amt  agt  rsc  amt
    input      97  117   12   32   89  116  119   15   32   83   12   32   89
    label    -100 -100 -100 -100 -100 -100 -100 -100 -100   83 -100 -100   89

**What is tracked.** An account is an agent with a resource. A line of the ledger is of one account and has four
tokens: `. agt rsc amt` SETS its amount, `add agt rsc amt` ADDS to it, modulo num_values (amounts wrap around, so that
every one stays equally likely). An account's first line is a set; each of its `updates` later lines is a set or
an addition of 1 ... most_added, as likely as not. The lines of all accounts are interleaved at random. Each
account's amount after the last line is asked for once.

Accounts share their agents and resources: neither alone says which amount is meant.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from echo_ska.tasks.alphabet import Alphabet, Marker
from echo_ska.tasks.base import draw_distinct, require_integer
from echo_ska.tasks.layout import StoredThenAsked, require_at_most, shuffle_blocks


@dataclass(frozen=True, kw_only=True)
class ResourceEconomy(StoredThenAsked):
    """The current amounts of a ledger.

    Attributes:
        accounts: pairs of agent and resource that have lines, out of agents * resources.
        agents: agents, distinct within a sequence.
        resources: resources, distinct too.
        updates: lines of an account after its first.
        most_added: the largest amount added at once; 0: every line is a set.
        length, vocab_size, num_keys, num_values: see `AlphabetTask`.

    Raises:
        ValueError: for settings that cannot be met.

    Chance is 1 / num_values: the last amount that an account was set to is uniform, whatever is added to it.
    """

    accounts: int = 4
    agents: int = 3
    resources: int = 3
    updates: int = 1
    most_added: int = 3

    def _check(self, alphabet: Alphabet) -> None:
        for name, least in (("accounts", 1), ("agents", 1), ("resources", 1), ("updates", 0), ("most_added", 0)):
            require_integer(name, getattr(self, name), least)
        require_at_most("agents", self.agents, self._first_resource, "agents to draw from, half of the keys")
        others = self.num_keys - self._first_resource
        require_at_most("resources", self.resources, others, "resources to draw from, half of the keys")
        pairs = self.agents * self.resources
        require_at_most("accounts", self.accounts, pairs, "pairs of an agent and a resource")
        require_at_most("most_added", self.most_added, self.num_values - 1, "amounts above 0")

    @property
    def _first_resource(self) -> int:
        return self.num_keys // 2

    @property
    def _contents(self) -> str:
        return f"{self.accounts} accounts of {1 + self.updates} lines, a pause and a question for each"

    @property
    def stored_shape(self) -> tuple[int, int]:
        """Filler or marker, agent, resource, amount."""
        return self.accounts * (1 + self.updates), 4

    @property
    def asked_shape(self) -> tuple[int, int]:
        """Agent, resource, amount."""
        return self.accounts, 3

    def _draw(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        lines, _ = self.stored_shape
        agents = draw_distinct(batch_size, self.agents, self._first_resource, generator)
        resources = draw_distinct(batch_size, self.resources, self.num_keys - self._first_resource, generator)
        accounts = draw_distinct(batch_size, self.accounts, self.agents * self.resources, generator)
        owner = agents.gather(1, accounts // self.resources)  # [B, accounts]
        owned = self._first_resource + resources.gather(1, accounts % self.resources)

        which = draw_distinct(batch_size, lines, lines, generator) % self.accounts  # [B, lines], the lines' accounts
        place = torch.arange(lines).expand_as(which)
        first = torch.full_like(accounts, lines).scatter_reduce_(1, which, place, "amin")
        adds = (place != first.gather(1, which)) & (torch.rand(which.shape, generator=generator) < 0.5)
        adds &= self.most_added > 0
        amounts = torch.randint(self.num_values, which.shape, generator=generator)
        small = torch.randint(1, max(2, self.most_added + 1), which.shape, generator=generator)
        amounts = torch.where(adds, small, amounts)

        # An account holds the sum of its lines from its last set on.
        set_at = torch.zeros_like(accounts).scatter_reduce_(1, which, place.masked_fill(adds, 0), "amax")
        counted = amounts.masked_fill(place < set_at.gather(1, which), 0)
        held = torch.zeros_like(accounts).scatter_add_(1, which, counted) % self.num_values

        fillers = self.alphabet.draw_fillers((batch_size, lines), generator)
        heads = torch.where(adds, self.alphabet.marker(Marker.ADD), fillers)
        amounts = self.alphabet.first_value + amounts
        ledger = torch.stack([heads, owner.gather(1, which), owned.gather(1, which), amounts], dim=-1)
        questions = torch.stack([owner, owned, self.alphabet.first_value + held], dim=-1)
        return ledger, shuffle_blocks(questions, generator)
