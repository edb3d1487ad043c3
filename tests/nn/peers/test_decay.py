"""Where decays start, and that the constants of the chunk form hold in float32."""

from __future__ import annotations

import math

import torch

from echo_ska.nn.peers.decay import MOST_CHUNK_SIZE, STRONGEST, HeadDecay, LowRank, centre, spread


def test_heads_start_by_forgetting_within_about_half_a_token_to_a_thousand():
    torch.manual_seed(0)
    decay = HeadDecay(8, 1000)
    spans = -1 / decay(torch.zeros(1, 8))
    assert spans.shape == (1, 1000, 1)
    assert 0.6 < spans.min() < 1
    assert 500 < spans.max() < 1001


def test_a_low_rank_map_starts_at_its_constant():
    starts = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    found = LowRank(8, 2, 3, 4, tanh=True, starts=starts)(torch.randn(5, 8))
    assert torch.equal(found, torch.tensor(starts).view(2, 3).expand(5, 2, 3))


def test_the_largest_factor_of_a_chunk_is_finite_in_float32():
    decay = torch.full((1, MOST_CHUNK_SIZE, 1), STRONGEST).cumsum(1)
    assert (decay - centre(decay)).abs().max().exp().isfinite()
    assert (1e3 * (decay - centre(decay)).abs().max().exp()).isfinite()


def test_spans_are_spread_evenly_in_their_logarithm():
    assert all(math.isclose(a, b) for a, b in zip(spread((1.0, 8.0), 4), [1.0, 2.0, 4.0, 8.0], strict=True))
    assert math.isclose(spread((3.0, 9.0), 1)[0], 3.0)
