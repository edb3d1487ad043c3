"""From where on a route is faster, said in words that hold at every length that was measured."""

from __future__ import annotations

import pytest

from echo_ska.experiments.claims.speed import crossover


@pytest.mark.parametrize(
    ("speeds", "said"),
    [
        ({512: 1.1, 2048: 2.0}, "faster from 512 tokens, the shortest measured"),
        ({512: 0.9, 2048: 1.5, 8192: 4.0}, "faster from between 512 and 2,048 tokens"),
        ({512: 1.2, 2048: 0.9, 8192: 4.0}, "faster from between 2,048 and 8,192 tokens"),
        ({512: 1.2, 2048: 1.5, 8192: 0.9}, "faster at some lengths, slower at 8,192 tokens"),
        ({2048: 1.0, 512: 0.5}, "slower up to 2,048 tokens"),
    ],
)
def test_faster_from_a_length_on_is_faster_at_all_above(speeds, said):
    assert crossover(speeds) == said
