"""Linear attention: a sum of outer products, without forgetting and without correction."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from echo_ska.nn.peers.base import LinearMixer, weighted_mean
from echo_ska.nn.simple_gla import SIMPLE_GLA


class LinearAttention(LinearMixer):
    """S_t = S_{t-1} + b_t v_t phi(k_t)^T, read as y_t = S_t phi(q_t); Katharopoulos et al., arXiv 2006.16236.

    `normalised` divides the read by z_t^T phi(q_t), with z_t = z_{t-1} + b_t phi(k_t); z is then one more row of the
    memory. With the identity for phi that sum can be 0 or negative, so it asks for a positive feature map.

    Args:
        feature_map: phi, "identity" or "elu+1".
        normalised: divide by the sum of the weights; the plain read is what the output norm then scales.
        Others: see `LinearMixer`. With "elu+1" keys are of unit norm before phi, if `unit_keys`.

    Raises:
        ValueError: an unknown feature map, or one that `normalised` does not go with.
    """

    kernel = SIMPLE_GLA

    def __init__(
        self,
        hidden_size: int,
        *,
        feature_map: Literal["identity", "elu+1"] = "identity",
        normalised: bool = False,
        **settings: Any,
    ) -> None:
        if feature_map not in ("identity", "elu+1"):
            raise ValueError(f'feature_map must be "identity" or "elu+1", got {feature_map!r}')
        if normalised and feature_map == "identity":
            raise ValueError('normalised divides by a sum of phi(k) . phi(q), which has to be positive: use "elu+1"')
        self.feature_map, self.normalised = feature_map, normalised
        super().__init__(hidden_size, **settings)

    @property
    def memory_shape(self) -> tuple[int, int, int]:
        return self.num_heads, self.head_dim + self.normalised, self.rank

    def tokens(
        self, hidden_states: Tensor, query: Tensor, key: Tensor, value: Tensor, weight: Tensor | None
    ) -> tuple[Tensor, ...]:
        if self.feature_map == "elu+1":
            query, key = F.elu(query) + 1, F.elu(key) + 1
        if self.normalised:
            value = F.pad(value, (0, 1), value=1.0)
        return query, key, value if weight is None else value * weight

    def recur(self, memory: Tensor, *tokens: Tensor) -> Tensor:
        query, key, value = tokens
        memory.addcmul_(value.unsqueeze(-1), key.unsqueeze(-2))
        return self._divided((memory.to(query.dtype) @ query.unsqueeze(-1)).squeeze(-1))

    @staticmethod
    def kernel_arguments(*tokens: Tensor) -> dict[str, Tensor]:
        return dict(zip("qkv", tokens, strict=True))

    @staticmethod
    def chunk(memory: Tensor, *tokens: Tensor) -> tuple[Tensor, Tensor]:
        query, key, value = tokens
        read = torch.baddbmm(query @ memory.mT, (query @ key.mT).tril(), value)
        return read, torch.baddbmm(memory, value.mT, key)

    def scan(self, memory: Tensor, *tokens: Tensor) -> tuple[Tensor, Tensor]:
        read, memory = super().scan(memory, *tokens)
        return self._divided(read), memory

    def _divided(self, read: Tensor) -> Tensor:
        return weighted_mean(read) if self.normalised else read
