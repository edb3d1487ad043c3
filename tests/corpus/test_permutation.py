from collections import Counter

import pytest

from echo_ska.corpus.permutation import permuted


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 100, 257, 1000])
def test_nothing_is_left_out_and_nothing_comes_twice(size):
    for key in (0, 1, 2**63 - 1):
        assert sorted(permuted(number, size, key) for number in range(size)) == list(range(size))


def test_keys_give_other_orders():
    orders = {tuple(permuted(number, 50, key) for number in range(50)) for key in range(40)}
    assert len(orders) == 40
    # Every one of the six orders of three things comes about as often as any other.
    counted = Counter(tuple(permuted(number, 3, key) for number in range(3)) for key in range(1200))
    assert len(counted) == 6
    assert max(counted.values()) < 300


def test_it_reaches_far_and_near_alike():
    size = 10_000
    moved = [permuted(number, size, 7) - number for number in range(0, size, 10)]
    assert sum(1 for step in moved if abs(step) < 100) < 50  # about 20 by chance
    assert len(set(moved)) > 900


def test_large_sizes_take_no_memory():
    size = 5 * 10**9
    assert all(0 <= permuted(number, size, 3) < size for number in (0, 1, size - 1))
