"""Based's linear attention: softmax attention's exponential, replaced by its Taylor polynomial of second order."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from echo_ska.nn.peers.base import LinearMixer, weighted_mean


class BasedAttention(LinearMixer):
    """Normalised linear attention with Taylor features, of Arora et al. (arXiv 2402.18668, section 4.1).

        S_t = S_{t-1} + b_t [v_t, 1] phi(k_t)^T      y_t = read / last row of S_t phi(q_t)
        phi(q) . phi(k) = 1 + s + s^2 / 2            s = q . k / sqrt(r)

    phi(x) holds 1, x and the products x_i x_j. Of the equal products x_i x_j = x_j x_i one is kept, scaled to stand for
    both, so phi has 1 + r + r (r + 1) / 2 features and the state is half as large for the same function.

    Args:
        rank: width of queries and keys, r; the published one is 16.
        unit_keys: as published, off: the sharpness of exp(q . k) is in the norms.
        chunk_size: 64, because a longer chunk reads the wide state more seldom.
        Others: see `LinearMixer`.
    """

    def __init__(self, hidden_size: int, *, unit_keys: bool = False, chunk_size: int = 64, **settings: Any) -> None:
        super().__init__(hidden_size, unit_keys=unit_keys, chunk_size=chunk_size, **settings)

    @property
    def memory_shape(self) -> tuple[int, int, int]:
        return self.num_heads, self.head_dim + 1, 1 + self.rank + self.rank * (self.rank + 1) // 2

    def tokens(
        self, hidden_states: Tensor, query: Tensor, key: Tensor, value: Tensor, weight: Tensor | None
    ) -> tuple[Tensor, ...]:
        value = F.pad(value, (0, 1), value=1.0)
        share = self.rank**-0.25  # of 1 / sqrt(r), for each of the two
        return query * share, key * share, value if weight is None else value * weight

    def recur(self, memory: Tensor, *tokens: Tensor) -> Tensor:
        query, key, value = tokens
        memory.addcmul_(value.unsqueeze(-1), taylor_features(key).unsqueeze(-2))
        return weighted_mean((memory.to(query.dtype) @ taylor_features(query).unsqueeze(-1)).squeeze(-1))

    @staticmethod
    def chunk(memory: Tensor, *tokens: Tensor) -> tuple[Tensor, Tensor]:
        query, key, value = tokens
        scores = query @ key.mT
        scores = (1 + scores + scores.square() / 2).tril()  # [G, C, C]; features are needed between chunks alone
        read = torch.baddbmm(taylor_features(query) @ memory.mT, scores, value)
        return read, torch.baddbmm(memory, value.mT, taylor_features(key))

    def scan(self, memory: Tensor, *tokens: Tensor) -> tuple[Tensor, Tensor]:
        read, memory = super().scan(memory, *tokens)
        return weighted_mean(read), memory


def taylor_features(vectors: Tensor) -> Tensor:
    """phi [..., 1 + r + r (r + 1) / 2] of [..., r], with phi(x) . phi(y) = 1 + x . y + (x . y)^2 / 2."""
    width = vectors.shape[-1]
    pairs = torch.triu_indices(width, width, device=vectors.device)
    # Products with 0 and 1 pick the channels: three times as fast on a CPU as indices, forward and backward.
    left, right = F.one_hot(pairs, width).to(vectors.dtype).mT  # [r, r (r + 1) / 2] each
    weight = torch.ones(pairs.shape[1], device=vectors.device, dtype=vectors.dtype)
    weight = weight.masked_fill(pairs[0] == pairs[1], math.sqrt(0.5))
    return torch.cat([torch.ones_like(vectors[..., :1]), vectors, (vectors @ left) * (vectors @ (right * weight))], -1)
