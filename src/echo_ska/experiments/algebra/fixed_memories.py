"""Associative memories of a fixed size, untrained: keys and values go in, queries are answered.

Tensors: keys [B, W, r], values [B, W, P], queries [B, N, r]; answers [B, N, P]. Counts are of the numbers that
a state holds, not of what this module computes with.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from echo_ska.algebra import RidgeFactor, SufficientStatistics, read


def packed_numbers(rank: int, head_dim: int) -> int:
    """SKA at power 0: the Gram matrix as a triangle, and the value moment."""
    return rank * (rank + 1) // 2 + head_dim * rank


def lagged_numbers(rank: int, head_dim: int) -> int:
    """SKA at a power above 0: Gram matrix, lag moment and value moment, all in full."""
    return 2 * rank * rank + head_dim * rank


def linear_numbers(rank: int, head_dim: int) -> int:
    """Linear attention and DeltaNet: one P x r matrix."""
    return head_dim * rank


def packed_rank(numbers: int, head_dim: int) -> int:
    """The largest rank whose `packed_numbers` are at most `numbers`."""
    return (math.isqrt((2 * head_dim + 1) ** 2 + 8 * numbers) - (2 * head_dim + 1)) // 2


def lagged_rank(numbers: int, head_dim: int) -> int:
    """The largest rank whose `lagged_numbers` are at most `numbers`."""
    return (math.isqrt(head_dim**2 + 8 * numbers) - head_dim) // 4


def linear_rank(numbers: int, head_dim: int) -> int:
    """The largest rank whose `linear_numbers` are at most `numbers`."""
    return numbers // head_dim


def centred_rank(numbers: int, head_dim: int) -> int:
    """The largest rank of `centred_answers`, which also keeps the sums of keys and of values and their number."""
    return (numbers - head_dim - 1) // (head_dim + 1)


def ska_statistics(keys: Tensor, values: Tensor) -> SufficientStatistics:
    """SKA's sums, of one head."""
    return SufficientStatistics.from_tokens(keys.unsqueeze(2), values.unsqueeze(2))


def ska_answers(statistics: SufficientStatistics, queries: Tensor, ridge: float) -> Tensor:
    """SKA's read at power 0: ridge regression of values on keys."""
    strength = torch.tensor(ridge, dtype=statistics.gram.dtype)
    return read(statistics, queries.unsqueeze(1), ridge=strength, power=0).squeeze(1)


def divided_answers(statistics: SufficientStatistics, queries: Tensor, ridge: float) -> Tensor:
    """SKA's read divided by q^T (G + ridge I)^-1 q: what a query would get that met its own key alone."""
    factor = RidgeFactor.of(statistics.gram, ridge).require_success()
    size = factor.whiten(queries.unsqueeze(1)).square().sum(-1, keepdim=True).squeeze(1)
    return ska_answers(statistics, queries, ridge) / size


def linear_answers(keys: Tensor, values: Tensor, queries: Tensor) -> Tensor:
    """Linear attention: S = sum v k^T, S q."""
    return queries @ (keys.mT @ values)


def centred_answers(keys: Tensor, values: Tensor, queries: Tensor) -> Tensor:
    """Linear attention with the mean key taken from keys and queries: S = sum v (k - mean)^T, S (q - mean)."""
    mean = keys.mean(1, keepdim=True)
    return linear_answers(keys - mean, values, queries - mean)


def delta_answers(keys: Tensor, values: Tensor, queries: Tensor, step: float) -> Tensor:
    """DeltaNet: S += step (v - S k) k^T for one pair after the other, S q."""
    return queries @ delta_memory(keys, values, step).mT


def delta_memory(keys: Tensor, values: Tensor, step: float, start: Tensor | None = None) -> Tensor:
    """DeltaNet's S [B, P, r] after these pairs, from `start` or from nothing.

    All at once: S = S_0 + sum u k^T with u_t = step (v_t - S_0 k_t - sum_{s<t} u_s k_s^T k_t), a triangular system.
    """
    wanted = values if start is None else values - keys @ start.mT
    system = step * torch.tril(keys @ keys.mT, diagonal=-1)
    system.diagonal(dim1=-2, dim2=-1).fill_(1)
    corrections = torch.linalg.solve_triangular(system, step * wanted, upper=False)
    written = corrections.mT @ keys
    return written if start is None else start + written
