"""A permutation of any number of things that takes no memory: each place is computed by itself."""

from __future__ import annotations

import hashlib

ROUNDS = 8


def permuted(number: int, size: int, key: int) -> int:
    """Where a permutation of 0 ... size - 1, drawn by `key`, sends `number`.

    A Feistel network permutes the numbers of 2 h bits, fewer than 4 size of them (at least 4); what falls outside is
    sent on until it falls inside (cycle walking), so no two numbers meet.

    Args:
        number: 0 <= number < size.
        size: at least 1, at most 2^62.
        key: 0 <= key < 2^64; other keys permute otherwise.

    Source: Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    secret = key.to_bytes(8, "little")
    while True:
        left, right = number >> half, number & mask
        for turn in range(ROUNDS):
            mixed = hashlib.blake2b(right.to_bytes(8, "little"), digest_size=8, key=secret, salt=bytes([turn]))
            left, right = right, left ^ (int.from_bytes(mixed.digest(), "little") & mask)
        number = left << half | right
        if number < size:
            return number
