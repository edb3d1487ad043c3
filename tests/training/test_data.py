import json
from pathlib import Path

import pytest
import torch
from tiny_model import build_echo, config

from echo_ska.tasks import MultiQueryRecallGrid, accuracy
from echo_ska.training import RecallData, RecallSchedule, TextData, TextFile, train
from echo_ska.training.data import require_vocabulary, rows_of_part, step_seed

TASK = MultiQueryRecallGrid(pairs=3, gap=4, vocab_size=32, num_keys=16, num_values=8)


def test_a_batch_is_a_function_of_seed_and_step():
    first, second = RecallData(TASK, 8, seed=1), RecallData(TASK, 8, seed=1)
    second.batch(0)  # what was drawn before does not matter
    for key, tensor in first.batch(7).items():
        assert tensor.dtype == torch.int64
        assert tensor.shape == (8, TASK.length)
        assert torch.equal(tensor, second.batch(7)[key])


def test_seeds_are_not_shifted_copies_of_one_another():
    drawn = [RecallData(TASK, 8, seed).batch(step)["input_ids"] for seed in range(4) for step in range(4)]
    assert len({tuple(tokens.flatten().tolist()) for tokens in drawn}) == 16
    assert len({step_seed(p, s, t) & 0xFFFFFFFF for p in ("a", "b") for s in range(20) for t in range(20)}) == 800


def test_length_and_labels_are_the_tasks():
    data = RecallData(TASK, 8, seed=0, length=40)
    batch = data.batch(0)
    assert batch["input_ids"].shape == (8, 40)
    answered = torch.nn.functional.one_hot(batch["labels"].clamp(min=0).roll(-1, 1), 32).float()
    assert accuracy(answered, batch["labels"]) == (8 * 3, 8 * 3)
    assert data.describe() == {
        "task": "MultiQueryRecallGrid",
        "pairs": 3,
        "gap": 28,
        "vocab_size": 32,
        "num_keys": 16,
        "num_values": 8,
        "batch_size": 8,
        "seed": 0,
    }


SOURCES = (
    RecallData(TASK, 12, seed=1),
    RecallSchedule(((TASK, 12, 1.0), (MultiQueryRecallGrid(pairs=2, gap=4), 6, 1.0)), seed=3),
    TextData([TextFile(Path("a"), torch.arange(250, dtype=torch.uint8))], 6, 16, seed=2),
)


@pytest.mark.parametrize("data", SOURCES, ids=lambda data: type(data).__name__)
def test_parts_are_the_rows_of_the_batch(data):
    for step in range(4):
        whole = data.batch(step)
        for parts in (1, 2, 3, 6):
            for part in range(parts):
                for name, tensor in data.batch(step, part, parts).items():
                    assert torch.equal(tensor, whole[name][part::parts])
                    assert tensor.is_contiguous()


def test_parts_that_a_batch_does_not_have_are_refused():
    batch = {"input_ids": torch.zeros(6, 3)}
    with pytest.raises(ValueError, match="A batch of 6 cannot be divided into 4 equal parts"):
        rows_of_part(batch, 0, 4)
    for part in (-1, 2):
        with pytest.raises(ValueError, match="part must be at least 0 and below parts"):
            rows_of_part(batch, part, 2)


def test_impossible_requests_are_refused():
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        RecallData(TASK, 0, seed=0)
    with pytest.raises(ValueError, match="length"):
        RecallData(TASK, 1, seed=0, length=5)


SCHEDULED = ((MultiQueryRecallGrid(pairs=2, gap=4), 6, 3.0), (MultiQueryRecallGrid(pairs=4, gap=20), 2, 1.0))


def test_every_step_of_a_schedule_is_of_one_task_as_often_as_its_weight_says():
    data = RecallSchedule(SCHEDULED, seed=3)
    shapes = [tuple(data.batch(step)["input_ids"].shape) for step in range(400)]
    assert set(shapes) == {(6, 12), (2, 36)}
    assert shapes.count((6, 12)) / 400 == pytest.approx(0.75, abs=0.07)
    for step in range(3):
        again = RecallSchedule(SCHEDULED, seed=3).batch(step)
        assert all(torch.equal(again[name], tensor) for name, tensor in data.batch(step).items())
    assert json.loads(json.dumps(data.describe())) == data.describe()
    assert (
        data.describe()["schedule"][1] | {"pairs": 4, "batch_size": 2, "weight": 1.0} == data.describe()["schedule"][1]
    )


@pytest.mark.parametrize(
    ("data", "ids"),
    [
        (RecallData(MultiQueryRecallGrid(), 4, seed=0), MultiQueryRecallGrid().vocab_size),
        (RecallSchedule(SCHEDULED, seed=0), max(task.vocab_size for task, _, _ in SCHEDULED)),
        (TextData([TextFile(Path("a"), torch.arange(250, dtype=torch.uint8))], 6, 16, seed=2), 256),
    ],
)
def test_a_model_that_knows_fewer_ids_is_refused_before_the_first_step(data, ids):
    model = build_echo()  # 13
    with pytest.raises(ValueError, match=f"knows 13 token ids and {type(data).__name__} has {ids}: build the model"):
        train(model, data, config(2))
    model.config.vocab_size = ids
    require_vocabulary(model, data)


@pytest.mark.parametrize("parts", [(), ((MultiQueryRecallGrid(), 4, 0.0),), ((MultiQueryRecallGrid(), 0, 1.0),)])
def test_a_schedule_that_draws_nothing_is_refused(parts):
    with pytest.raises(ValueError, match="must be"):
        RecallSchedule(parts, seed=0)
