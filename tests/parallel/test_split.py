"""Parts of a batch put together again are the batch, and every label stands with the token before it."""

from __future__ import annotations

import itertools

import pytest
import torch

from echo_ska.parallel import part_bounds, split_sequence


@pytest.mark.parametrize(("length", "world", "multiple_of"), [(100, 3, 1), (7, 7, 1), (100, 4, 8), (64, 1, 8)])
def test_bounds_are_nearly_equal_multiples(length, world, multiple_of) -> None:
    bounds = part_bounds(length, world, multiple_of)
    sizes = [end - begin for begin, end in itertools.pairwise(bounds)]
    assert (bounds[0], bounds[-1], len(bounds)) == (0, length, world + 1)
    assert all(bound % multiple_of == 0 for bound in bounds[:-1])
    assert max(sizes) - min(sizes) < 2 * multiple_of + (multiple_of == 1)


def test_too_few_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="3 tokens cannot be cut into 4 parts: use longer"):
        part_bounds(3, 4)
    with pytest.raises(ValueError, match="in multiples of 8"):
        part_bounds(31, 4, 8)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_labels_are_shifted_over_the_cuts(world) -> None:
    ids = torch.arange(2 * 23).view(2, 23)
    labels = ids.clone()
    labels[0, 11] = -100
    parts = [split_sequence({"input_ids": ids, "labels": labels}, rank, world) for rank in range(world)]
    assert torch.equal(torch.cat([part["input_ids"] for part in parts], dim=1), ids)
    shifted = torch.cat([part["shift_labels"] for part in parts], dim=1)
    assert torch.equal(shifted[:, :-1], labels[:, 1:])
    assert bool((shifted[:, -1] == -100).all())


def test_packed_sequences_go_on_in_sequence_0_of_the_next_part() -> None:
    batch = {"input_ids": torch.zeros(1, 30, dtype=torch.int64), "cu_seqlens": torch.tensor([0, 4, 10, 25, 30])}
    parts = [split_sequence(batch, rank, 3)["cu_seqlens"].tolist() for rank in range(3)]
    assert parts == [[0, 4, 10], [0, 0, 10], [0, 5, 10]]


def test_what_cannot_be_cut_is_refused() -> None:
    ids = torch.zeros(2, 8, dtype=torch.int64)
    with pytest.raises(ValueError, match="not of position_ids"):
        split_sequence({"input_ids": ids, "position_ids": ids}, 0, 2)
    with pytest.raises(ValueError, match="a padded batch cannot be cut"):
        split_sequence({"input_ids": ids, "attention_mask": ids}, 0, 2)
    assert split_sequence({"input_ids": ids, "attention_mask": ids + 1}, 0, 2)["input_ids"].shape == (2, 4)
    for bounds in ([0, 8], [0, 9, 8], [1, 4, 8], [0, 4, 7], [0, 0, 8]):
        with pytest.raises(ValueError, match="3 increasing numbers from 0 to 8"):
            split_sequence({"input_ids": ids}, 0, 2, bounds=bounds)
