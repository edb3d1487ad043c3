"""The order of assignments. Labels, lengths and refusals: test_all_tasks.py."""

import pytest
import torch

from echo_ska.tasks import VariableTracking


def assignments(task: VariableTracking, tokens: list[int]) -> list[tuple[int, int]]:
    found, position = [], 0
    while position < len(tokens) - 3 * task.questions:
        if tokens[position] < 64:
            found.append((tokens[position], tokens[position + 1]))
            position += 2
        position += 1
    return found


@pytest.mark.parametrize("task", [VariableTracking(), VariableTracking(chains=4, variables=2, questions=4)], ids=str)
def test_chains_have_their_variables_and_the_last_ones_are_asked_for(task: VariableTracking) -> None:
    for tokens in task.sample(50, torch.Generator().manual_seed(0)).input_ids.tolist():
        chains: dict[int, list[int]] = {}  # by their last variable so far
        for to, source in assignments(task, tokens):
            chains[to] = [*chains.pop(source, []), to]
        assert [len(chain) for chain in chains.values()] == [task.variables] * task.chains
        asked = tokens[-3 * task.questions + 1 :: 3]
        assert len(set(asked)) == task.questions
        assert set(asked) <= set(chains)


def test_every_interleaving_is_as_likely() -> None:
    task = VariableTracking(chains=2, variables=2, questions=1)
    counts: dict[str, int] = {}
    for tokens in task.sample(6000, torch.Generator().manual_seed(0)).input_ids.tolist():
        chain_of: dict[int, str] = {}
        order = ""
        for to, source in assignments(task, tokens):
            chain_of[to] = chain_of.get(source) or "ab"[len(set(chain_of.values()))]
            order += chain_of[to]
        counts[order] = counts.get(order, 0) + 1
    assert set(counts) == {"aabb", "abab", "abba"}  # the chain that begins is called a
    assert all(abs(count - 2000) < 200 for count in counts.values())
