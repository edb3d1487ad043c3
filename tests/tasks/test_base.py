"""Laws of the batch, the count of right answers, and the draws that all tasks share."""

import dataclasses

import pytest
import torch

from echo_ska.tasks import IGNORED, TASKS, RecallBatch, RecallTask, accuracy, answer_positions
from echo_ska.tasks.base import draw_distinct


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=TASKS, name="task")
def _task(request: pytest.FixtureRequest) -> RecallTask:
    return TASKS[request.param]()


def test_batches_have_the_stated_shape_and_tokens(task: RecallTask) -> None:
    batch = task.sample(5, generator())
    for tensor in (batch.input_ids, batch.labels):
        assert tensor.shape == (5, task.length)
        assert tensor.dtype == torch.int64
        assert tensor.is_contiguous()
    assert 0 <= int(batch.input_ids.min()) <= int(batch.input_ids.max()) < task.vocab_size
    scored = batch.labels[batch.labels != IGNORED]
    assert 0 <= int(scored.min()) <= int(scored.max()) < task.vocab_size


def test_a_seed_decides_the_batch_and_advances(task: RecallTask) -> None:
    source, twin = generator(3), generator(3)
    first, second = task.sample(4, source), task.sample(4, source)
    for batch in (first, second):
        again = task.sample(4, twin)
        assert torch.equal(batch.input_ids, again.input_ids)
        assert torch.equal(batch.labels, again.labels)
    assert not torch.equal(first.input_ids, second.input_ids)
    assert not torch.equal(first.input_ids, task.sample(4, generator(4)).input_ids)


def test_the_global_generator_is_left_alone(task: RecallTask) -> None:
    before = torch.get_rng_state()
    task.sample(2, generator())
    assert torch.equal(before, torch.get_rng_state())


def test_with_length_changes_the_length_alone(task: RecallTask) -> None:
    longer = task.with_length(64 * task.length)
    assert longer.length == 64 * task.length
    assert longer.sample(1, generator()).input_ids.shape == (1, longer.length)
    assert longer.with_length(task.length) == task


def test_settings_cannot_be_changed_afterwards(task: RecallTask) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.pairs = 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, True])
def test_a_bad_batch_size_is_refused(task: RecallTask, batch_size: int) -> None:
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1"):
        task.sample(batch_size, generator())


def test_a_generator_of_another_device_is_refused(task: RecallTask) -> None:
    class Elsewhere:
        device = torch.device("cuda")

    with pytest.raises(ValueError, match=r"must be a CPU generator.* got one on cuda"):
        task.sample(1, Elsewhere())  # type: ignore[arg-type]


def test_a_predictor_that_reads_only_the_cue_scores_at_chance(task: RecallTask) -> None:
    """Any fixed map from cue to value does: its accuracy is `chance` within five standard errors."""
    source = generator()
    batch = task.sample(4000, source)
    values = task.sample(4000, source).labels.unique()[1:]  # of other sequences, without the -100
    value_of_cue = values[torch.randint(len(values), (task.vocab_size,), generator=source)]
    rows, positions = answer_positions(batch.labels)
    guesses = value_of_cue[batch.input_ids[rows, positions - 1]]
    right = (guesses == batch.labels[rows, positions]).double().mean().item()
    error = (task.chance * (1 - task.chance) / len(rows)) ** 0.5
    assert abs(right - task.chance) < 5 * error


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
