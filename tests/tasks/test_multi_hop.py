"""Chains, their links' order, and chance where hops are written out. Labels and refusals: test_all_tasks.py."""

import pytest
import torch

from echo_ska.tasks import IGNORED, MultiHop

SMALL = {"vocab_size": 40, "num_keys": 20, "num_values": 4}


@pytest.mark.parametrize("hops", [2, 3])
def test_links_stand_in_random_order_each_followed_by_a_filler(hops: int) -> None:
    task = MultiHop(chains=3, hops=hops, questions=1, length=60, written=True, **SMALL)
    tokens = task.sample(4000, torch.Generator().manual_seed(0)).input_ids
    asked = tokens[:, -hops - 1 :]
    log = tokens[:, : -hops - 1]
    start = [((log[:, :-1] == key[:, None]) & (log[:, 1:] == end[:, None])) for key, end in zip_links(asked)]
    places = torch.stack([found.double().argmax(dim=1) for found in start], dim=1)  # [B, hops]
    assert all(bool((found.sum(dim=1) == 1).all()) for found in start)
    fillers = log.gather(1, places + 2)
    assert int(fillers.min()) >= 24
    assert int(fillers.max()) < 32
    in_order = (places.diff(dim=1) > 0).all(dim=1).double().mean().item()
    assert in_order == pytest.approx(1 / 2 if hops == 2 else 1 / 6, abs=0.04)


def zip_links(chain: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(chain.T[:-1], chain.T[1:], strict=True))


def test_chance_with_hops_written_out_is_counted_over_the_hops() -> None:
    assert MultiHop(hops=3).chance == 1 / 32
    assert MultiHop(hops=1, written=True).chance == 1 / 32
    assert MultiHop(hops=2, written=True).chance == pytest.approx((1 / 63 + 1 / 32) / 2)
    assert MultiHop(hops=3, written=True).chance == pytest.approx((1 / 63 + 1 / 62 + 1 / 32) / 3)


@pytest.mark.parametrize(("written", "scored"), [(True, 3), (False, 1)])
def test_what_is_scored_is_written_after_what_it_answers(written: bool, scored: int) -> None:
    batch = MultiHop(hops=3, written=written).sample(10, torch.Generator().manual_seed(0))
    answered = batch.labels != IGNORED
    assert answered.sum(dim=1).unique().tolist() == [2 * scored]
    assert torch.equal(batch.input_ids[answered], batch.labels[answered])
    assert bool((batch.input_ids == 124).any()) != written


def test_chains_that_are_not_asked_distract_with_values_of_their_own() -> None:
    task = MultiHop(chains=4, questions=1)
    tokens = task.sample(2000, torch.Generator().manual_seed(0)).input_ids
    ends = tokens[:, :-3][(tokens[:, :-3] >= 64) & (tokens[:, :-3] < 96)].view(2000, 4)
    assert bool((ends == tokens[:, -1:]).any(dim=1).all())
    assert (ends == tokens[:, -1:]).double().mean().item() == pytest.approx(1 / 4 + 3 / 4 / 32, abs=0.02)
