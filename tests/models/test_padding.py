"""Padding removed and put back."""

from __future__ import annotations

import torch

from echo_ska.models.padding import joined, padding_boundaries, scatter


def test_what_is_removed_is_put_back_as_zeros():
    hidden = torch.randn(3, 5, 4)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    boundaries, real = padding_boundaries(mask, hidden, 0)
    assert boundaries.tolist() == [0, 3, 8, 10]
    packed = hidden[real].unsqueeze(0)
    assert torch.equal(packed[0, :3], hidden[0, 2:])
    assert torch.equal(scatter(packed, real, 5), hidden * mask.unsqueeze(-1))


def test_only_the_new_columns_of_a_long_mask_count():
    hidden = torch.randn(2, 3, 4)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]])
    boundaries, real = padding_boundaries(mask, hidden, 2)
    assert boundaries.tolist() == [0, 3, 5]
    assert real.tolist() == [[True] * 3, [True, True, False]]
    assert padding_boundaries(mask[:1].repeat(2, 1), hidden, 2) is None
    assert padding_boundaries(None, hidden, 2) is None


def test_parts_are_joined_along_time():
    hidden = torch.randn(2, 5, 4)
    assert torch.equal(joined(hidden[:, :2], hidden[:, 2:]), hidden)
