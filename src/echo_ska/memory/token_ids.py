"""Token ids as one sequence, and a hash of their prefixes that goes on from where it stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

EMPTY_HASH = hashlib.sha256(b"").hexdigest()
"""The hash of no token."""


def token_ids(input_ids: Tensor | Sequence[int], vocab_size: int) -> Tensor:
    """One sequence of token ids as [T] int64 on the CPU, T >= 1.

    Args:
        input_ids: [T] or [1, T], any integer dtype and device, or a list of int.
        vocab_size: ids must be below it.

    Raises:
        ValueError: several sequences, no token, or what is no token id.
    """
    ids = input_ids if isinstance(input_ids, Tensor) else torch.as_tensor(input_ids, device="cpu")
    if ids.dim() == 2 and ids.shape[0] == 1:
        ids = ids[0]
    if ids.dim() != 1 or ids.shape[0] < 1:
        raise ValueError(f"input_ids must be one sequence of at least one token, [T] or [1, T], got {list(ids.shape)}")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"input_ids must be integers, got {ids.dtype}")
    ids = ids.detach().to("cpu", torch.int64)
    least, greatest = int(ids.min()), int(ids.max())
    if least < 0 or greatest >= vocab_size:
        raise ValueError(
            f"input_ids must be from 0 to {vocab_size - 1}, the model's vocabulary, got "
            f"{least if least < 0 else greatest}"
        )
    return ids


def prefix_hashes(ids: Tensor, lengths: Collection[int], start: str = EMPTY_HASH) -> dict[int, str]:
    """The hash of the first n tokens, for each n in `lengths`; about a microsecond a token.

    It is a chain, hash(t + 1 tokens) = SHA-256(hash(t tokens), id as little-endian int64), so that it is known for
    every prefix after one pass and goes on from the hash alone.

    Args:
        ids: [T] int64 on the CPU.
        lengths: each from 0 to T.
        start: the hash of what came before `ids`.
    """
    wanted, found = set(lengths), {}
    if 0 in wanted:
        found[0] = start
    current, last = bytes.fromhex(start), max(wanted, default=0)
    written = ids[:last].numpy().astype("<i8").tobytes()
    for count in range(1, last + 1):
        current = hashlib.sha256(current + written[8 * count - 8 : 8 * count]).digest()
        if count in wanted:
            found[count] = current.hex()
    return found
