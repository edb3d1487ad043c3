"""Gated linear attention: a memory that forgets every key channel at a rate of its own."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from echo_ska.nn.aids import precise
from echo_ska.nn.peers.base import LinearMixer
from echo_ska.nn.peers.decay import MOST_CHUNK_SIZE, STRONGEST, LowRank, centre, spread

# Published: the 16th root of a sigmoid, since plain sigmoids forget too fast.
ROOT = 16


class GatedLinearAttention(LinearMixer):
    """S_t = S_{t-1} diag(a_t) + b_t v_t k_t^T, read as y_t = S_t q_t; Yang et al., arXiv 2312.06635 (GLA).

    a_t = sigmoid(W_2 W_1 x_t + c)^(1/16), a vector of r decays per head. (The published layer scales the read by
    r^(-1/2), which the output norm takes away, and gates the output by the token, which is left out as it is in SKA.)

    Args:
        low_rank: columns of W_2, through which the decays come.
        memory_spans: the channels of each head start by forgetting within so many tokens, from the first number to
            the second, evenly in their logarithm; None starts c as published, so that all forget within about 23.
        Others: see `LinearMixer`; a chunk has at most 32 tokens.

    Raises:
        ValueError: the sizes do not fit.
    """

    kernel = "fla.ops.gla.chunk_gla"

    def __init__(
        self,
        hidden_size: int,
        *,
        num_heads: int,
        rank: int,
        low_rank: int = 16,
        memory_spans: tuple[float, float] | None = (10.0, 1000.0),
        **settings: Any,
    ) -> None:
        super().__init__(hidden_size, num_heads=num_heads, rank=rank, **settings)
        if self.chunk_size > MOST_CHUNK_SIZE:
            raise ValueError(f"chunk_size must be at most {MOST_CHUNK_SIZE} for decays per channel")
        starts = None
        if memory_spans is not None:  # where sigmoid(c)^(1/16) = exp(-1 / span)
            starts = [-math.log(math.expm1(ROOT / span)) for span in spread(memory_spans, rank)] * num_heads
        self.decay = LowRank(hidden_size, num_heads, rank, low_rank, starts=starts)

    def tokens(
        self, hidden_states: Tensor, query: Tensor, key: Tensor, value: Tensor, weight: Tensor | None
    ) -> tuple[Tensor, ...]:
        # The bound is that of the chunk form; a token meets it at a score below -80.
        log_decay = (F.logsigmoid(precise(self.decay(hidden_states))) / ROOT).clamp_min(STRONGEST)
        return query, key, value if weight is None else value * weight, log_decay

    def recur(self, memory: Tensor, *tokens: Tensor) -> Tensor:
        query, key, value, log_decay = tokens
        memory.mul_(log_decay.exp().unsqueeze(-2)).addcmul_(value.unsqueeze(-1), key.unsqueeze(-2))
        return (memory.to(query.dtype) @ query.unsqueeze(-1)).squeeze(-1)

    @staticmethod
    def kernel_arguments(*tokens: Tensor) -> dict[str, Tensor]:
        return dict(zip("qkvg", tokens, strict=True))

    @staticmethod
    def chunk(memory: Tensor, *tokens: Tensor) -> tuple[Tensor, Tensor]:
        query, key, value, log_decay = tokens
        decay = log_decay.cumsum(-2)  # [G, C, r]
        middle, last = centre(decay), decay[:, -1:]
        # Of a pair in the wrong order the score may overflow: it is dropped, not multiplied by 0.
        scores = ((query * (decay - middle).exp()) @ (key * (middle - decay).exp()).mT).tril()
        read = torch.baddbmm((query * decay.exp()) @ memory.mT, scores, value)
        return read, torch.baddbmm(memory * last.exp(), value.mT, key * (last - decay).exp())
