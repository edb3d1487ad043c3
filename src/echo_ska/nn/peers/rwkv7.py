"""RWKV-7's memory: a delta rule whose decay, removal key and learning rate are vectors."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from echo_ska.nn.aids import precise, unit_norm
from echo_ska.nn.peers.base import LinearMixer
from echo_ska.nn.peers.decay import MOST_CHUNK_SIZE, LowRank, centre, spread

# The largest rate of decay, published: no channel forgets more than 45.5 % a token.
RATE = math.exp(-0.5)
# At the start, the channels of a head forget within so many tokens: about what is published, which depends on depth.
SPANS = (9.0, 1000.0)


class RWKV7(LinearMixer):
    """S_t = S_{t-1} (diag(w_t) - c_t (a_t * c_t)^T) + b_t v_t k~_t^T, read as y_t = S_t q_t; arXiv 2503.14456.

    The memory of RWKV-7's time mixing (its section 4), with everything that steers it:

        w_t = exp(-exp(-1/2) sigmoid(.))     decay, a vector
        a_t = sigmoid(.)                     learning rate in context, a vector
        c_t = unit norm of (xi * k_t)        the key that is removed, xi learnt
        k~_t = k_t * (1 + (a_t - 1) * mu)    the key that is stored, mu learnt
        (q_t . (rho * k~_t)) b_t v_t         bonus of the current token, added behind the norm, rho learnt

    Around it stand SKA's aids: the short convolution where the token shift is, RMSNorm for the group norm, and the
    write gate b_t (1 without it) besides. Left out are the output gate and the values mixed in from the first layer.

    Args:
        low_rank: width of the bottlenecks through which w and a come.
        Others: see `LinearMixer`; a chunk has at most 32 tokens.

    Raises:
        ValueError: the sizes do not fit.
    """

    def __init__(self, hidden_size: int, *, num_heads: int, rank: int, low_rank: int = 16, **settings: Any) -> None:
        super().__init__(hidden_size, num_heads=num_heads, rank=rank, **settings)
        if self.chunk_size > MOST_CHUNK_SIZE:
            raise ValueError(f"chunk_size must be at most {MOST_CHUNK_SIZE} for decays per channel")
        starts = [-math.log(RATE * span - 1) for span in spread(SPANS, rank)] * num_heads  # w_t = exp(-1 / span)
        self.decay = LowRank(hidden_size, num_heads, rank, low_rank, tanh=True, starts=starts)
        self.rate = LowRank(hidden_size, num_heads, rank, low_rank, starts=[0.0] * (num_heads * rank))
        self.channels = KeyChannels(num_heads, rank)

    def tokens(
        self, hidden_states: Tensor, query: Tensor, key: Tensor, value: Tensor, weight: Tensor | None
    ) -> tuple[Tensor, ...]:
        log_decay = -RATE * torch.sigmoid(precise(self.decay(hidden_states)))
        rate = torch.sigmoid(precise(self.rate(hidden_states)))
        removed = unit_norm(key * self.channels.removal.to(key.dtype))
        stored = torch.addcmul(key, key * self.channels.mixing.to(key.dtype), rate - 1)
        return query, stored, value if weight is None else value * weight, removed, rate, log_decay

    def recur(self, memory: Tensor, *tokens: Tensor) -> Tensor:
        query, key, value, removed, rate, log_decay = tokens
        known = memory.to(key.dtype) @ removed.unsqueeze(-1)  # [N, H, P, 1]
        memory.mul_(log_decay.exp().unsqueeze(-2)).addcmul_(known, (rate * removed).unsqueeze(-2), value=-1)
        memory.addcmul_(value.unsqueeze(-1), key.unsqueeze(-2))
        return (memory.to(key.dtype) @ query.unsqueeze(-1)).squeeze(-1)

    @staticmethod
    def chunk(memory: Tensor, *tokens: Tensor) -> tuple[Tensor, Tensor]:
        """With U what S knew of the removed keys: (I + A) U = C~ S^T + B V, so that every write is known at once."""
        query, key, value, removed, rate, log_decay = tokens
        size = query.shape[1]
        decay = log_decay.cumsum(-2)  # [G, C, r]
        earlier = decay - log_decay  # a key is looked up before the memory decays
        middle, last = centre(decay), decay[:, -1:]
        readers = torch.cat([removed * (earlier - middle).exp(), query * (decay - middle).exp()], dim=1)
        written = torch.cat([rate * removed, key], dim=1)
        products = readers @ (written * (middle - decay).exp().repeat(1, 2, 1)).mT  # [G, 2 C, 2 C]
        lookups, reads = products[:, :size], products[:, size:]
        before = torch.cat([removed * earlier.exp(), query * decay.exp()], dim=1) @ memory.mT  # [G, 2 C, P]
        known = torch.linalg.solve_triangular(
            lookups[..., :size].tril(-1),
            torch.baddbmm(before[:, :size], lookups[..., size:].tril(-1), value),
            upper=False,
            unitriangular=True,
        )
        values = torch.cat([-known, value], dim=1)
        scores = torch.cat([reads[..., :size].tril(), reads[..., size:].tril()], dim=-1)
        read = torch.baddbmm(before[:, size:], scores, values)
        return read, torch.baddbmm(memory * last.exp(), values.mT, written * (last - decay).exp().repeat(1, 2, 1))

    def _finished(self, read: Tensor, dtype: torch.dtype, tokens: tuple[Tensor, ...]) -> Tensor:
        query, key, value = tokens[:3]
        bonus = torch.linalg.vecdot(query * self.channels.bonus.to(key.dtype), key).unsqueeze(-1) * value
        return super()._finished(read, dtype, tokens) + bonus.to(dtype)


class KeyChannels(nn.Module):
    """The learnt vectors of RWKV-7's keys, [H, r] each: `removal` (xi), `mixing` (mu) and `bonus` (rho)."""

    _no_weight_decay = ("removal", "mixing", "bonus")

    def __init__(self, num_heads: int, rank: int) -> None:
        super().__init__()
        self.removal = nn.Parameter(torch.empty(num_heads, rank))
        self.mixing = nn.Parameter(torch.empty(num_heads, rank))
        self.bonus = nn.Parameter(torch.empty(num_heads, rank))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """xi and mu as published; the bonus starts at 0, so that what is recalled is learnt first."""
        nn.init.constant_(self.removal, 0.85)
        nn.init.ones_(self.mixing)
        nn.init.zeros_(self.bonus)
