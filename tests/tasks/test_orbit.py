"""Facts of orbit recall, on drawn batches and on the drawing in the docstring; and that dynamics answer it."""

import itertools

import pytest
import torch

from echo_ska.tasks import IGNORED, OrbitRecall, RecallBatch, orbit


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def check_facts(task: OrbitRecall, batch: RecallBatch) -> None:
    """Everything the definition promises of each sequence, token by token."""
    asked = task.walk + task.gap
    for tokens, labels in zip(batch.input_ids.tolist(), batch.labels.tolist(), strict=True):
        walk = tokens[: task.walk]
        follower: dict[int, int] = {}
        for state, after in itertools.pairwise(walk):
            assert follower.setdefault(state, after) == after
        assert len(follower) == len(set(walk)) == task.states
        assert all(0 <= state < task.num_states for state in walk)
        assert all(task.num_states <= token < task.vocab_size for token in tokens[task.walk : asked])
        assert len(set(tokens[asked::2])) == task.queries
        for place in range(asked, task.length, 2):
            answer = tokens[place]
            for _ in range(task.steps):
                answer = follower[answer]
            assert labels[place + 1] == answer != tokens[place]
            assert tokens[place + 1] >= task.num_states
        assert labels.count(IGNORED) == len(labels) - task.queries


@pytest.mark.parametrize(
    "task",
    [
        OrbitRecall(),
        OrbitRecall(steps=5),
        OrbitRecall(states=2, walk=3, gap=0, queries=2, vocab_size=4, num_states=3),
        OrbitRecall(states=64, walk=100, gap=1, queries=64, steps=63),
    ],
    ids=str,
)
def test_every_answer_stands_so_many_steps_along_the_walk(task):
    for seed in range(10):
        check_facts(task, task.sample(4, generator(seed)))


def test_the_docstring_draws_a_true_sequence():
    lines = [line.split() for line in orbit.__doc__.splitlines() if line.startswith("    ")]
    rows = {name: cells for name, *cells in lines}
    assert rows["position"] == [str(position) for position in range(15)]
    assert rows["role"] == ["walk"] * 7 + ["."] * 2 + ["ask", "."] * 3
    inputs, labels = ([int(cell) for cell in rows[name]] for name in ("input", "label"))
    task = OrbitRecall(states=4, walk=7, gap=2, queries=3, steps=2, vocab_size=14, num_states=9)
    check_facts(task, RecallBatch(torch.tensor([inputs]), torch.tensor([labels])))


@pytest.mark.parametrize("steps", [1, 3])
def test_a_power_of_the_map_fitted_to_the_walk_answers(steps):
    task = OrbitRecall(steps=steps)
    batch = task.sample(1, generator())
    walk = torch.nn.functional.one_hot(batch.input_ids[0, : task.walk], task.num_states).double()
    step = torch.linalg.pinv(walk[:-1]) @ walk[1:]  # row vectors: x_{t+1} = x_t step
    places = torch.nonzero(batch.labels[0] != IGNORED)[:, 0]
    cues = torch.nn.functional.one_hot(batch.input_ids[0, places - 1], task.num_states).double()
    assert torch.equal((cues @ torch.linalg.matrix_power(step, steps)).argmax(dim=1), batch.labels[0, places])


def test_length_and_chance():
    task = OrbitRecall()
    assert (task.length, task.chance) == (64, 1 / 63)
    longer = task.with_length(4096)
    assert longer.length == 4096
    assert longer.sample(2, generator()).input_ids.shape == (2, 4096)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"states": 65, "walk": 99}, "use at most 64 states"),
        ({"walk": 12}, "walk must be a whole number of at least 13"),
        ({"steps": 12}, "use at most 11 steps"),
        ({"queries": 13}, "use at most 12 queries"),
        ({"vocab_size": 64}, "vocab_size must be a whole number of at least 65"),
    ],
)
def test_settings_that_cannot_be_met_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        OrbitRecall(**settings)


def test_a_length_that_is_too_short_is_refused():
    with pytest.raises(ValueError, match="need a length of at least 42"):
        OrbitRecall().with_length(41)
