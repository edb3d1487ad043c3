"""Ledgers kept by hand, and how often what comes. Labels, lengths and refusals: test_all_tasks.py."""

import pytest
import torch

from echo_ska.tasks import ResourceEconomy


def ledger(task: ResourceEconomy, tokens: list[int]) -> list[tuple[bool, int, int, int]]:
    """(adds, agent, resource, amount) of each line."""
    log = tokens[: -3 * task.accounts]
    return [(log[at - 1] == 126, token, log[at + 1], log[at + 2] - 64) for at, token in enumerate(log) if token < 32]


def test_amounts_are_set_and_added_to_and_wrap_around() -> None:
    task = ResourceEconomy(accounts=1, agents=1, resources=1, updates=1, most_added=31)
    wrapped = 0
    for tokens in task.sample(400, torch.Generator().manual_seed(0)).input_ids.tolist():
        (_, _, _, before), (adds, _, _, amount) = ledger(task, tokens)
        assert tokens[-1] - 64 == ((before + amount) % 32 if adds else amount)
        wrapped += adds and before + amount > 31
    assert 50 < wrapped < 150  # about a quarter: half of the lines add, half of these wrap around


@pytest.mark.parametrize("most_added", [0, 3])
def test_first_lines_set_and_of_the_later_ones_half_add(most_added: int) -> None:
    task = ResourceEconomy(updates=3, most_added=most_added, length=128)
    later = added = 0
    amounts = set()
    for tokens in task.sample(200, torch.Generator().manual_seed(0)).input_ids.tolist():
        seen: dict[tuple[int, int], int] = {}
        for adds, agent, resource, amount in ledger(task, tokens):
            account = (agent, resource)
            assert not (adds and account not in seen)
            later, added = later + (account in seen), added + adds
            amounts |= {amount} if adds else set()
            seen[account] = seen.get(account, 0) + 1
        assert list(seen.values()) == [4] * 4
        assert len({agent for agent, _ in seen}) <= 3 >= len({resource for _, resource in seen})
    assert later == 200 * 4 * 3
    assert added / later == pytest.approx(0.5 if most_added else 0.0, abs=0.06)
    assert amounts == set(range(1, most_added + 1))


def test_amounts_asked_for_are_uniform() -> None:
    task = ResourceEconomy(updates=4, most_added=3, length=128)
    asked = task.sample(8000, torch.Generator().manual_seed(0)).input_ids[:, -1] - 64
    assert torch.allclose(asked.bincount(minlength=32) / 8000, torch.full((32,), 1 / 32), atol=0.012)
