"""The permutation and the direction of the question. Labels, lengths and refusals: test_all_tasks.py."""

from collections import Counter

import torch

from echo_ska.tasks import InverseMatching


def test_firsts_are_a_uniform_permutation_of_the_same_values() -> None:
    tokens = InverseMatching(pairs=3).sample(6000, torch.Generator().manual_seed(0)).input_ids
    stored = tokens[:, :-1]
    firsts = stored[(stored >= 64) & (stored < 96)].view(6000, 3)
    orders = Counter(map(tuple, firsts.tolist()))
    assert len(orders) == 6
    assert all(sorted(order) == [64, 65, 66] for order in orders)
    assert sum((count - 1000) ** 2 / 1000 for count in orders.values()) < 5 + 5 * 10**0.5


def test_what_follows_the_key_is_a_filler_and_each_pair_is_asked_for_equally_often() -> None:
    task = InverseMatching()
    assert task.chance == 0.2
    tokens = task.sample(6000, torch.Generator().manual_seed(0)).input_ids
    rows, places = (tokens[:, :-2] < 64).nonzero(as_tuple=True)
    assert int(tokens[rows, places + 1].min()) >= 96
    assert bool(((tokens[rows, places - 1] >= 64) & (tokens[rows, places - 1] < 69)).all())
    keys = tokens[rows, places].view(6000, 5)
    share = (keys == tokens[:, [-2]]).double().mean(dim=0)
    assert torch.allclose(share, torch.full((5,), 0.2, dtype=torch.float64), atol=0.03)
