"""The memories of the recall map: each is what its name says, and each holds the numbers it says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from echo_ska.experiments.algebra import fixed_memories as memories
from echo_ska.memory import AssociativeMemory


def pairs(count: int, rank: int = 8, head_dim: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    keys = torch.nn.functional.normalize(torch.randn(2, count, rank, generator=generator).double(), dim=-1)
    return keys, torch.randn(2, count, head_dim, generator=generator).double()


@pytest.mark.parametrize("count", [4, 8])
def test_no_more_pairs_than_rank_are_recalled_exactly_at_a_tiny_ridge(count: int) -> None:
    keys, values = pairs(count)
    answers = memories.ska_answers(memories.ska_statistics(keys, values), keys, 1e-10)
    torch.testing.assert_close(answers, values, atol=1e-5, rtol=0)


def test_a_large_ridge_is_linear_attention() -> None:
    keys, values = pairs(20)
    answers = 1e9 * memories.ska_answers(memories.ska_statistics(keys, values), keys, 1e9)
    torch.testing.assert_close(answers, memories.linear_answers(keys, values, keys), atol=1e-6, rtol=0)


def test_a_divided_read_is_the_same_read_on_another_scale() -> None:
    keys, values = pairs(20)
    statistics = memories.ska_statistics(keys, values)
    plain = memories.ska_answers(statistics, keys, 0.3)
    divided = memories.divided_answers(statistics, keys, 0.3)
    inverse = torch.linalg.inv(statistics.gram.squeeze(1) + 0.3 * torch.eye(8).double())
    torch.testing.assert_close(divided * (keys @ inverse * keys).sum(-1, keepdim=True), plain)


@pytest.mark.parametrize("step", [0.2, 1.0])
def test_delta_is_one_projection_after_the_other(step: float) -> None:
    keys, values = pairs(20)
    state = torch.zeros(2, 5, 8).double()
    for key, value in zip(keys.unbind(1), values.unbind(1), strict=True):
        missing = value - (state @ key.unsqueeze(-1)).squeeze(-1)
        state = state + step * missing.unsqueeze(-1) * key.unsqueeze(-2)
    torch.testing.assert_close(memories.delta_answers(keys, values, keys, step), keys @ state.mT)
    if step == 1.0:
        torch.testing.assert_close(memories.delta_answers(keys, values, keys[:, -1:], step), values[:, -1:])


def test_centring_takes_a_shared_component_out() -> None:
    keys, values = pairs(20)
    shared = keys + torch.randn(2, 1, 8).double()
    torch.testing.assert_close(
        memories.centred_answers(shared, values, shared), memories.centred_answers(keys, values, keys)
    )


def test_states_hold_the_numbers_that_are_counted() -> None:
    statistics = AssociativeMemory(rank=8, head_dim=5).statistics
    triangle = int(torch.ones(8, 8).tril().sum())
    assert memories.packed_numbers(8, 5) == triangle + statistics.value_moment.numel()
    full = statistics.gram.numel() + statistics.lag_moment.numel() + statistics.value_moment.numel()
    assert memories.lagged_numbers(8, 5) == full
    assert memories.linear_numbers(8, 5) == 8 * 5


@pytest.mark.parametrize("numbers", [60, 511, 4096, 8720])
@pytest.mark.parametrize("kind", ["packed", "lagged", "linear"])
def test_ranks_are_the_largest_that_fit(kind: str, numbers: int) -> None:
    count, largest = getattr(memories, f"{kind}_numbers"), getattr(memories, f"{kind}_rank")
    rank = largest(numbers, 16)
    assert count(rank, 16) <= numbers < count(rank + 1, 16)
