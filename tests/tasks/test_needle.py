"""Depths and questions of needles. Labels, lengths and refusals: test_all_tasks.py."""

import torch

from echo_ska.tasks import Needle


def test_a_needle_is_at_every_depth_equally_often() -> None:
    task = Needle(needles=1, length=64)
    tokens = task.sample(30_000, torch.Generator().manual_seed(0)).input_ids
    depths = (tokens[:, :-2] < 64).double().argmax(dim=1).bincount(minlength=59).double()
    assert len(depths) == 59  # 64 - question - pause - the needle's second token
    expected = 30_000 / 59
    assert ((depths - expected) ** 2 / expected).sum() < 58 + 5 * (2 * 58) ** 0.5


def test_questions_come_in_any_order_and_values_may_repeat() -> None:
    task = Needle(needles=3, length=40, vocab_size=32, num_keys=12, num_values=4)
    tokens = task.sample(6000, torch.Generator().manual_seed(0)).input_ids
    stored = tokens[:, :-6][tokens[:, :-6] < 12].view(6000, 3)
    asked = tokens[:, -6::2]
    assert torch.equal(stored.sort(dim=1).values, asked.sort(dim=1).values)
    place = (stored[:, :, None] == asked[:, None, :]).double().mean(dim=0)
    assert torch.allclose(place, torch.full((3, 3), 1 / 3, dtype=torch.float64), atol=0.03)
    assert abs((tokens[:, -5] == tokens[:, -3]).double().mean().item() - 1 / 4) < 0.03
