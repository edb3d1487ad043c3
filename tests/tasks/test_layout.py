"""Blocks among fillers: never overlapping, uniformly placed, never close before a question."""

from collections import Counter

import pytest
import torch
from task_table import TABLE

from echo_ska.tasks.layout import StoredThenAsked, place_blocks, shuffle_blocks


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("count", "width", "room"), [(1, 1, 1), (3, 2, 6), (4, 3, 50), (8, 2, 5000)])
def test_blocks_do_not_overlap_and_stay_inside(count: int, width: int, room: int) -> None:
    starts = place_blocks(500, count, width, room, generator())
    assert starts.shape == (500, count)
    assert int(starts.min()) >= 0
    assert int(starts.max()) <= room - width
    assert bool((starts.diff(dim=1) >= width).all())


def test_every_placement_is_equally_likely() -> None:
    placements = Counter(map(tuple, place_blocks(20_000, 2, 2, 6, generator()).tolist()))
    assert set(placements) == {(a, b) for a in range(5) for b in range(a + 2, 5)}
    expected = 20_000 / 6
    assert sum((count - expected) ** 2 / expected for count in placements.values()) < 5 + 5 * 10**0.5


def test_shuffled_blocks_stay_whole_and_come_in_every_order() -> None:
    blocks = torch.tensor([[1, 10], [2, 20], [3, 30]]).expand(3000, 3, 2)
    shuffled = shuffle_blocks(blocks, generator())
    assert bool((shuffled[:, :, 1] == 10 * shuffled[:, :, 0]).all())
    orders = Counter(map(tuple, shuffled[:, :, 0].tolist()))
    assert len(orders) == 6
    assert min(orders.values()) > 400


TASKS = [task for row in TABLE.values() for task in row.settings if isinstance(task, StoredThenAsked)]


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_two_tokens_before_the_questions_store_nothing(task: StoredThenAsked) -> None:
    questions, width = task.asked_shape
    tokens = task.sample(50, generator()).input_ids
    before = tokens[:, -questions * width - 2 : -questions * width]
    assert int(before.min()) >= task.alphabet.first_filler


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_what_is_not_stored_or_asked_is_filler(task: StoredThenAsked) -> None:
    task = task.with_length(2 * task.length)
    (blocks, width), (questions, asked) = task.stored_shape, task.asked_shape
    tokens = task.sample(20, generator()).input_ids
    keys_and_values = (tokens < task.alphabet.first_filler).sum(dim=1)
    assert int(keys_and_values.max()) <= blocks * width + questions * asked
    fillers = (tokens >= task.alphabet.first_filler) & (tokens < task.alphabet.first_marker)
    assert int(fillers.sum(dim=1).min()) >= task.length - blocks * width - questions * asked - 2  # two markers at most
