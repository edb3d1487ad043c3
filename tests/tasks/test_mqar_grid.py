"""Facts of the paper's MQAR grid, on drawn batches and on the drawing in the docstring."""

import pytest
import torch

from echo_ska.tasks import IGNORED, MultiQueryRecallGrid, RecallBatch, mqar_grid


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def check_facts(task: MultiQueryRecallGrid, batch: RecallBatch) -> None:
    """Everything the definition promises of each sequence, token by token."""
    stored, asked = 2 * task.pairs, 2 * task.pairs + task.gap
    fillers = task.num_keys + task.num_values
    for tokens, labels in zip(batch.input_ids.tolist(), batch.labels.tolist(), strict=True):
        keys, values = tokens[0:stored:2], tokens[1:stored:2]
        assert len(set(keys)) == task.pairs
        assert all(0 <= key < task.num_keys for key in keys)
        assert all(task.num_keys <= value < fillers for value in values)
        assert all(fillers <= token < task.vocab_size for token in tokens[stored:asked])
        assert sorted(tokens[asked::2]) == sorted(keys)  # so no answer stands between a pair and its query
        memory = dict(zip(keys, values, strict=True))
        assert tokens[asked + 1 :: 2] == [memory[key] for key in tokens[asked::2]]
        assert labels[asked + 1 :: 2] == tokens[asked + 1 :: 2]
        assert labels.count(IGNORED) == len(labels) - task.pairs


PAPER = [MultiQueryRecallGrid(pairs=pairs, gap=gap) for pairs in (4, 8, 16, 32) for gap in (64, 4096)]
EDGES = [
    MultiQueryRecallGrid(),
    MultiQueryRecallGrid(pairs=64, gap=1),  # every key is used
    MultiQueryRecallGrid(pairs=1, gap=0, vocab_size=2, num_keys=1, num_values=1),
    MultiQueryRecallGrid(pairs=3, gap=7, vocab_size=1000, num_keys=500, num_values=2),
]


@pytest.mark.parametrize("task", PAPER + EDGES, ids=str)
def test_every_query_is_answered_by_the_value_stored_with_its_key(task: MultiQueryRecallGrid) -> None:
    assert task.length == 4 * task.pairs + task.gap
    for seed in range(10):
        check_facts(task, task.sample(4, generator(seed)))


def test_the_docstring_draws_a_true_sequence() -> None:
    assert mqar_grid.__doc__ is not None
    lines = [line.split() for line in mqar_grid.__doc__.splitlines() if line.startswith("    ")]
    rows = {name: cells for name, *cells in lines}
    assert rows["position"] == [str(position) for position in range(16)]
    assert rows["role"] == ["key", "val"] * 3 + ["."] * 4 + ["ask", "val"] * 3
    inputs, labels = ([int(cell) for cell in rows[name]] for name in ("input", "label"))
    task = MultiQueryRecallGrid(pairs=3, gap=4, vocab_size=20, num_keys=8, num_values=8)
    check_facts(task, RecallBatch(torch.tensor([inputs]), torch.tensor([labels])))


def test_the_default_is_the_cell_of_64_tokens_with_32_values() -> None:
    task = MultiQueryRecallGrid()
    assert (task.length, task.vocab_size, task.pairs, task.chance) == (64, 128, 8, 1 / 32)


def test_keys_values_fillers_and_the_order_of_queries_are_uniform() -> None:
    task = MultiQueryRecallGrid(pairs=2, gap=4, vocab_size=12, num_keys=4, num_values=4)
    tokens = task.sample(20_000, generator()).input_ids
    for part, first in ((tokens[:, 0], 0), (tokens[:, 3], 4), (tokens[:, 5], 8)):
        share = (part - first).bincount(minlength=4) / 20_000
        assert torch.allclose(share, torch.full((4,), 0.25), atol=0.02)
    assert (tokens[:, 0] == tokens[:, 8]).double().mean().item() == pytest.approx(0.5, abs=0.02)
    assert (tokens[:, 1] == tokens[:, 3]).double().mean().item() == pytest.approx(0.25, abs=0.02)  # replaced


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"pairs": 65}, "65 pairs need as many distinct keys, got num_keys=64: use at most 64 pairs"),
        ({"vocab_size": 96}, "a gap of 32 need a vocab_size of at least 97, got 96"),
        ({"vocab_size": 90, "gap": 0}, "at least 96, got 90"),
        ({"gap": -1}, "gap must be a whole number of at least 0, got -1"),
        ({"pairs": 0}, "pairs must be"),
        ({"num_keys": -64}, "num_keys must be"),
        ({"num_values": 0}, "num_values must be"),
        ({"vocab_size": 128.0}, "vocab_size must be a whole number"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        MultiQueryRecallGrid(**settings)


@pytest.mark.parametrize("length", [31, 0, -5])
def test_a_length_that_does_not_fit_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="length"):
        MultiQueryRecallGrid().with_length(length)


def test_a_million_tokens_fit() -> None:
    task = MultiQueryRecallGrid().with_length(1_048_576)
    check_facts(task, task.sample(1, generator()))
