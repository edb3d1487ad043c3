"""Facts of Zoology's MQAR, on drawn batches and on the drawing in the docstring."""

import pytest
import torch

from echo_ska.tasks import IGNORED, MultiQueryRecall, RecallBatch, mqar


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def check_facts(task: MultiQueryRecall, batch: RecallBatch) -> None:
    """Everything the definition promises of each sequence, token by token."""
    half, stored = task.vocab_size // 2, 2 * task.pairs
    for tokens, labels in zip(batch.input_ids.tolist(), batch.labels.tolist(), strict=True):
        keys, values = tokens[0:stored:2], tokens[1:stored:2]
        assert len(set(keys)) == len(set(values)) == task.pairs
        assert all(1 <= key < half for key in keys)
        assert all(half <= value < task.vocab_size for value in values)
        answers = [position for position, label in enumerate(labels) if label != IGNORED]
        cues = [position - 1 for position in answers]
        assert all(cue >= stored and cue % 2 == 0 for cue in cues)
        assert sorted(tokens[cue] for cue in cues) == sorted(keys)  # each key is asked for exactly once
        memory = dict(zip(keys, values, strict=True))
        assert all(labels[cue + 1] == memory[tokens[cue]] for cue in cues)


SETTINGS = [
    MultiQueryRecall(),
    MultiQueryRecall(vocab_size=8192, length=256, pairs=64),  # every slot is used
    MultiQueryRecall(vocab_size=128, length=64, pairs=8),
    MultiQueryRecall(vocab_size=128, length=4096, pairs=8),
    MultiQueryRecall(vocab_size=5, length=10, pairs=1),
    MultiQueryRecall(vocab_size=66, length=200, pairs=32),  # every key is used
]


@pytest.mark.parametrize("task", SETTINGS, ids=str)
def test_every_query_is_answered_by_the_value_stored_with_its_key(task: MultiQueryRecall) -> None:
    for seed in range(10):
        check_facts(task, task.sample(8, generator(seed)))


def test_the_docstring_draws_a_true_sequence() -> None:
    assert mqar.__doc__ is not None
    rows = {line.split()[0]: line.split()[1:] for line in mqar.__doc__.splitlines() if line.startswith("    ")}
    assert rows["position"] == [str(position) for position in range(16)]
    inputs = [int(token) for token in rows["input"]]
    labels = [int(label) for label in rows["label"]]
    batch = RecallBatch(torch.tensor([inputs]), torch.tensor([labels]))
    check_facts(MultiQueryRecall(vocab_size=12, length=16, pairs=2), batch)
    asked = [position for position, role in enumerate(rows["role"]) if role == "ask"]
    assert [position + 1 for position in asked] == [at for at, label in enumerate(labels) if label != IGNORED]
    assert rows["role"][:4] == ["key", "val"] * 2
    assert set(inputs[6:9]) <= set(inputs[:4])  # the noise that looks like stored keys and values


def slot_counts(task: MultiQueryRecall, rows: int) -> torch.Tensor:
    """How often key 1, key 2, ... was asked for in each slot: float64 [pairs, slots]."""
    batch = task.sample(rows, generator())
    stored = 2 * task.pairs
    asked = batch.labels[:, stored + 1 :: 2] != IGNORED  # [B, slots]
    cues = torch.where(asked, batch.input_ids[:, stored::2], -1)
    return torch.stack([(cues == batch.input_ids[:, [2 * pair]]).sum(0) for pair in range(task.pairs)]).double()


def assert_chi_square(observed: torch.Tensor, probability: torch.Tensor) -> None:
    expected = observed.sum() * probability
    assert expected.min() > 5
    freedom = len(observed) - 1
    assert ((observed - expected) ** 2 / expected).sum() < freedom + 5 * (2 * freedom) ** 0.5


def test_slots_follow_the_power_law_without_replacement() -> None:
    task = MultiQueryRecall(vocab_size=8192, length=64, pairs=2)
    observed = slot_counts(task, 100_000)
    first = torch.arange(1, 31, dtype=torch.float64) ** -0.99
    first /= first.sum()
    second = first * ((first / (1 - first)).sum() - first / (1 - first))  # sum over the first key's other slots
    assert observed.sum(1).tolist() == [100_000, 100_000]
    assert_chi_square(observed[0], first)
    assert_chi_square(observed[1], second)


def test_the_power_law_reaches_far_slots() -> None:
    """Of 4,095 slots the far half gets the small share that the law gives it."""
    task = MultiQueryRecall(length=8192, pairs=1)
    weight = torch.arange(1, 4096, dtype=torch.float64) ** -0.99
    share = float(weight[2048:].sum() / weight.sum())
    observed = slot_counts(task, 1000)[0, 2048:].sum().item()
    assert abs(observed - 1000 * share) < 5 * (1000 * share * (1 - share)) ** 0.5


def test_noise_is_uniform_over_the_whole_vocabulary() -> None:
    task = MultiQueryRecall(vocab_size=16, length=64, pairs=2)
    noise = task.sample(2000, generator()).input_ids[:, 5::2]  # odd places after the pairs are never queries
    assert_chi_square(noise.flatten().bincount(minlength=16).double(), torch.full((16,), 1 / 16).double())


def test_it_is_zoologys_pair_of_inputs_and_unshifted_labels() -> None:
    """Logits t against label t + 1 ask the same as Zoology's loss: logits t against its label t."""
    task = MultiQueryRecall(vocab_size=128, length=32, pairs=8)  # every slot is used, the last one too
    batch = task.sample(16, generator())
    padded = torch.cat([batch.labels, torch.full((16, 1), IGNORED)], dim=1)
    zoology = padded[:, 1:]  # y[1:]
    asked = zoology != IGNORED
    assert bool((asked.sum(1) == task.pairs).all())
    assert bool((zoology[:, 30] != IGNORED).all())  # the last slot: scored, not lost
    for row in range(16):
        memory = dict(zip(*batch.input_ids[row, :16].view(8, 2).T.tolist(), strict=True))
        cues = batch.input_ids[row, asked[row]].tolist()
        assert zoology[row, asked[row]].tolist() == [memory[cue] for cue in cues]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"length": 63}, "length must be even.* got 63: use 64"),
        ({"length": 64, "pairs": 17}, "17 pairs need a length of at least 68.* got 64: use at most 16 pairs"),
        ({"vocab_size": 16, "pairs": 8}, "a vocabulary of 16 has 7: use a vocab_size of at least 18"),
        ({"vocab_size": 3}, "vocab_size must be a whole number of at least 4, got 3"),
        ({"pairs": 0}, "pairs must be a whole number of at least 1, got 0"),
        ({"pairs": -4}, "pairs must be"),
        ({"pairs": 2.5}, "pairs must be a whole number of at least 1, got 2.5"),
        ({"length": -64}, "length must be"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        MultiQueryRecall(**settings)


def test_a_length_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="4 pairs need a length of at least 16"):
        MultiQueryRecall().with_length(8)


def test_a_million_tokens_fit() -> None:
    task = MultiQueryRecall(length=1_048_576)
    check_facts(task, task.sample(1, generator()))
