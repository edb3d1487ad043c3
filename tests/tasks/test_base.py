"""Laws of the batch, the count of right answers, and the draws that all tasks share."""

import pytest
import torch

from echo_ska.tasks import (
    IGNORED,
    MultiQueryRecall,
    MultiQueryRecallGrid,
    RecallBatch,
    RecallTask,
    accuracy,
    answer_positions,
)
from echo_ska.tasks.base import draw_distinct


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_logits_are_scored_one_position_before_the_label() -> None:
    labels = torch.tensor([[IGNORED, 2, IGNORED, 1], [3, IGNORED, 0, IGNORED]])  # the 3 has no logits before it
    rows, positions = answer_positions(labels)
    assert rows.tolist() == [0, 0, 1]
    assert positions.tolist() == [1, 3, 2]
    logits = torch.zeros(2, 4, 4)
    assert accuracy(logits, labels) == (1, 3)  # token 0 everywhere: right once
    logits[0, 0, 2] = logits[0, 2, 1] = 1.0
    assert accuracy(logits, labels) == (3, 3)
    assert accuracy(logits, torch.full_like(labels, IGNORED)) == (0, 0)


def test_logits_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[B, T, V\].*\(2, 3, 4\) and \(2, 4\)"):
        accuracy(torch.zeros(2, 3, 4), torch.zeros(2, 4, dtype=torch.int64))


def test_a_batch_moves_to_another_device() -> None:
    batch = RecallBatch(torch.ones(1, 2, dtype=torch.int64), torch.ones(1, 2, dtype=torch.int64)).to("meta")
    assert batch.input_ids.device.type == batch.labels.device.type == "meta"


@pytest.mark.parametrize(("count", "choices"), [(1, 1), (5, 5), (3, 7), (2, 64), (16, 4095)])
def test_distinct_draws_are_distinct_and_in_range(count: int, choices: int) -> None:
    drawn = draw_distinct(2000, count, choices, generator())
    assert drawn.shape == (2000, count)
    assert 0 <= int(drawn.min()) <= int(drawn.max()) < choices
    assert bool((drawn.sort(dim=1).values.diff(dim=1) > 0).all())


@pytest.mark.parametrize("choices", [4, 17])  # one for each of the two ways of drawing
def test_distinct_draws_are_uniform_over_ordered_pairs(choices: int) -> None:
    drawn = draw_distinct(100_000, 2, choices, generator())
    counts = (drawn[:, 0] * choices + drawn[:, 1]).bincount(minlength=choices**2).view(choices, choices)
    observed = counts[~torch.eye(choices, dtype=torch.bool)].double()
    expected = 100_000 / len(observed)
    freedom = len(observed) - 1
    assert ((observed - expected) ** 2 / expected).sum() < freedom + 5 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("task", [MultiQueryRecall(), MultiQueryRecallGrid()], ids=["mqar", "mqar-grid"])
def test_roles_name_keys_values_and_questions(task: RecallTask) -> None:
    batch = task.sample(3, generator())
    for ids, labels, roles in zip(batch.input_ids, batch.labels, task.roles(batch), strict=True):
        assert len(roles) == task.length
        assert set(roles) <= {"key", "val", "ask", "."}
        stored = {int(ids[place]): int(ids[place + 1]) for place, role in enumerate(roles) if role == "key"}
        asked = [place for place, role in enumerate(roles) if role == "ask"]
        assert [place + 1 for place in asked] == (labels != IGNORED).nonzero()[:, 0].tolist()
        for place in asked:
            assert stored[int(ids[place])] == int(labels[place + 1])
