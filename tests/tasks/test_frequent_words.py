"""Counts and their order. Labels, lengths and refusals: test_all_tasks.py."""

from collections import Counter

import pytest
import torch

from echo_ska.tasks import FrequentWords

SETTINGS = [FrequentWords(), FrequentWords(words=4, top=4, least=3, step=2), FrequentWords(words=2, top=1, step=9)]


@pytest.mark.parametrize("task", SETTINGS, ids=str)
def test_words_come_as_often_as_stated_and_no_two_equally_often(task: FrequentWords) -> None:
    assert list(task.counts) == sorted(set(task.counts), reverse=True)
    for tokens in task.sample(50, torch.Generator().manual_seed(0)).input_ids.tolist():
        listed, asked = tokens[: -2 * task.top], tokens[-2 * task.top :]
        times = Counter(word for word in listed if word < 64)
        assert tuple(sorted(times.values(), reverse=True)) == task.counts
        assert asked[::2] == [64 + rank for rank in range(task.top)]
        assert [times[word] for word in asked[1::2]] == list(task.counts[: task.top])


def test_the_order_of_the_list_says_nothing() -> None:
    """At every place of the list the most frequent word stands with its share of it, 3 of 6."""
    task = FrequentWords(words=3, top=1, length=10)
    assert task.least_length == task.length
    tokens = task.sample(8000, torch.Generator().manual_seed(0)).input_ids
    share = (tokens[:, :6] == tokens[:, -1:]).double().mean(0)
    assert torch.allclose(share, torch.full((6,), 0.5, dtype=torch.float64), atol=0.03)
