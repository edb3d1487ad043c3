"""Tokens laid out by chunks, with sequences and heads as one dimension, and back."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def into_chunks(tokens: Tensor, size: int) -> Tensor:
    """[N, T, H, D] -> [K, N H, C, D], contiguous, of K chunks of C = `size` tokens; zeros behind the last token.

    A chunk is no longer than the sequences: C is T where `size` is more.
    """
    rows, length, heads, width = tokens.shape
    size = min(size, length)
    padding = -length % size
    if padding:
        tokens = F.pad(tokens, (0, 0, 0, 0, 0, padding))
    chunks = (length + padding) // size
    return tokens.unflatten(1, (chunks, size)).permute(1, 0, 3, 2, 4).reshape(chunks, rows * heads, size, width)


def from_chunks(chunks: Tensor, length: int, heads: int) -> Tensor:
    """[K, N H, C, D] -> [N, T, H, D]; the inverse of `into_chunks`."""
    return chunks.unflatten(1, (-1, heads)).permute(1, 0, 3, 2, 4).flatten(1, 2)[:, :length]
