"""Records as messages, and sums of records of packed sequences; the scan itself runs in test_context.py."""

from __future__ import annotations

import functools
import itertools
import operator

import pytest
import torch

from echo_ska.algebra import SufficientStatistics
from echo_ska.nn.mamba2 import DecayingState
from echo_ska.parallel.scan import Restarting, packed, unpacked


def statistics(seed: int) -> SufficientStatistics:
    torch.manual_seed(seed)
    key, value = torch.randn(1, 5, 2, 3, dtype=torch.float64), torch.randn(1, 5, 2, 4, dtype=torch.float64)
    return SufficientStatistics.from_tokens(key, value)


def decaying(seed: int) -> DecayingState:
    torch.manual_seed(seed)
    return DecayingState(-torch.rand(1, 3), torch.randn(1, 3, 4, 5))


def close(found, wanted) -> bool:
    pairs = zip(found.tensors().values(), wanted.tensors().values(), strict=True)
    return all(mine.dtype == its.dtype and torch.allclose(mine, its, atol=1e-6) for mine, its in pairs)


@pytest.mark.parametrize("make", [statistics, decaying])
def test_a_message_is_one_tensor_that_gives_the_record_back(make) -> None:
    record = make(0)
    message = packed(record)
    assert message.dim() == 1
    assert message.dtype == (torch.float64 if make is statistics else torch.float32)
    assert close(unpacked(message, make(1)), record)


@pytest.mark.parametrize("make", [statistics, decaying])
def test_zeros_are_no_token_and_sums_are_associative(make) -> None:
    a, b, c = (make(seed) for seed in range(3))
    nothing = a.map(torch.zeros_like)
    assert close(nothing + a, a)
    assert close(a + nothing, a)
    assert close((a + b) + c, a + (b + c))


@pytest.mark.parametrize("make", [statistics, decaying])
@pytest.mark.parametrize("restarts", list(itertools.product([0.0, 1.0], repeat=3)), ids=str)
def test_a_sequence_that_begins_in_a_part_forgets_what_was_before(make, restarts) -> None:
    records = [Restarting(make(seed), torch.tensor([flag])) for seed, flag in enumerate(restarts)]
    (a, b, c), last = records, max((place for place, flag in enumerate(restarts) if flag), default=0)
    wanted = functools.reduce(operator.add, [make(seed) for seed in range(last, 3)])
    for found in ((a + b) + c, a + (b + c)):
        assert close(found.record, wanted)
        assert float(found.restarts) == max(restarts)
    assert close(unpacked(packed(a), b).record, a.record)
