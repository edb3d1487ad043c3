"""What a conversion is trained on."""

from __future__ import annotations

import pytest
import torch

from echo_ska.convert.data import TokenWindows, WithCopying


def test_batches_are_a_function_of_seed_and_step():
    text = torch.arange(1000, dtype=torch.uint8)
    data, other = TokenWindows(text, 3, 8, seed=1), TokenWindows(text, 3, 8, seed=2)
    first = data.batch(5)["input_ids"]
    assert torch.equal(first, data.batch(5)["labels"])
    assert first.dtype == torch.int64
    assert bool((first.diff(dim=1) % 256 == 1).all())
    assert not torch.equal(first, data.batch(6)["input_ids"])
    assert not torch.equal(first, other.batch(5)["input_ids"])
    with pytest.raises(ValueError, match="give more text"):
        TokenWindows(text[:7], 3, 8, seed=0)


def test_every_so_many_batches_copy():
    source = TokenWindows(torch.arange(1000), 3, 40, seed=1)
    data = WithCopying(source, 90, seed=4, every=3)
    assert torch.equal(data.batch(1)["input_ids"], source.batch(1)["input_ids"])
    periods = set()
    for step in range(2, 300, 3):
        batch = data.batch(step)
        assert batch["input_ids"].shape == batch["labels"].shape == (3, 40)
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            period = int((labels == -100).sum()) - 1
            periods.add(period)
            assert torch.equal(ids[period:], ids[:-period])
            assert (labels[: period + 1] == -100).all()
            assert torch.equal(labels[period + 1 :], ids[period + 1 :])
        assert torch.equal(batch["input_ids"], data.batch(step)["input_ids"])
    assert periods == set(range(8, 21))
    assert not torch.equal(data.batch(2)["input_ids"], data.batch(5)["input_ids"])
    other = WithCopying(source, 90, seed=5, every=3)
    assert not torch.equal(data.batch(2)["input_ids"], other.batch(2)["input_ids"])
    with pytest.raises(ValueError, match="at least 2"):
        WithCopying(source, 90, seed=0, every=1)


def test_periods_can_be_named():
    source = TokenWindows(torch.arange(1000), 3, 40, seed=1)
    ids = WithCopying(source, 90, seed=4, every=2, periods=(6, 6)).batch(1)["input_ids"]
    assert torch.equal(ids[:, 6:], ids[:, :-6])
    assert len(ids[0].unique()) > 3
    for periods in ((1, 4), (5, 4)):
        with pytest.raises(ValueError, match="periods must be the shortest"):
            WithCopying(source, 90, seed=4, periods=periods)


def test_windows_too_short_for_a_period_of_eight_copy_their_half():
    data = WithCopying(TokenWindows(torch.arange(100), 2, 10, seed=0), 90, seed=0, every=2)
    ids = data.batch(1)["input_ids"]
    assert torch.equal(ids[:, :5], ids[:, 5:])
