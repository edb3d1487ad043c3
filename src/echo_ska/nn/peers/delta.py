"""The delta rule by chunks: what the memory already says about a key is taken off the value before it is written."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from echo_ska.nn.peers.base import LinearMixer
from echo_ska.nn.peers.decay import HeadDecay


class DeltaNet(LinearMixer):
    """S_t = S_{t-1} (I - b_t k_t k_t^T) + b_t v_t k_t^T, read as y_t = S_t q_t; Yang et al., arXiv 2406.06484.

    The write gate is the strength b_t in [0, 1] (1 without a gate). For arguments see `LinearMixer`; without
    `unit_keys` the memory can grow without bound, since b_t |k_t|^2 must stay below 2.
    """

    # Of DeltaNet too, with a decay of 1: the kernel for it alone takes no float32.
    kernel = "fla.ops.gated_delta_rule.chunk_gated_delta_rule"
    kernel_decays = True

    def tokens(
        self, hidden_states: Tensor, query: Tensor, key: Tensor, value: Tensor, weight: Tensor | None
    ) -> tuple[Tensor, ...]:
        strength = torch.ones_like(key[..., :1]) if weight is None else weight
        return query, key, value, strength

    def recur(self, memory: Tensor, *tokens: Tensor) -> Tensor:
        query, key, value, strength = tokens[:4]
        if len(tokens) == 5:
            memory.mul_(tokens[4].exp().unsqueeze(-1))
        correction = strength * (value - (memory.to(key.dtype) @ key.unsqueeze(-1)).squeeze(-1))
        memory.addcmul_(correction.unsqueeze(-1), key.unsqueeze(-2))
        return (memory.to(key.dtype) @ query.unsqueeze(-1)).squeeze(-1)

    @staticmethod
    def kernel_arguments(*tokens: Tensor) -> dict[str, Tensor]:
        query, key, value, strength = tokens[:4]
        log_decay = tokens[4] if len(tokens) == 5 else torch.zeros_like(strength)
        return {"q": query, "k": key, "v": value, "beta": strength[..., 0], "g": log_decay[..., 0]}

    @staticmethod
    def chunk(memory: Tensor, *tokens: Tensor) -> tuple[Tensor, Tensor]:
        return delta_chunk(memory, *tokens)


class GatedDeltaNet(DeltaNet):
    """S_t = a_t S_{t-1} (I - b_t k_t k_t^T) + b_t v_t k_t^T with a decay a_t per head; Yang et al., arXiv 2412.06464.

    a_t is Mamba-2's (`HeadDecay`). For arguments see `LinearMixer`; a_t is always there, DeltaNet is this without it.
    """

    def __init__(self, hidden_size: int, *, num_heads: int, **settings: Any) -> None:
        super().__init__(hidden_size, num_heads=num_heads, **settings)
        self.decay = HeadDecay(hidden_size, num_heads)

    def tokens(
        self, hidden_states: Tensor, query: Tensor, key: Tensor, value: Tensor, weight: Tensor | None
    ) -> tuple[Tensor, ...]:
        return *super().tokens(hidden_states, query, key, value, weight), self.decay(hidden_states)


def delta_chunk(
    memory: Tensor, query: Tensor, key: Tensor, value: Tensor, strength: Tensor, log_decay: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The gated delta rule within a chunk (the WY form of arXiv 2412.06464, section 3.3).

    With S the memory that the chunk starts from, g_t the sum of log a up to and with t, and what token t really
    writes, e_t = b_t (v_t - a_t S_{t-1} k_t):

        (I + L) E = b (V - exp(g) K S^T)      L_ts = b_t exp(g_t - g_s) k_t . k_s for s < t

    Args:
        memory: S, [G, P, r].
        query, key: [G, C, r].
        value: [G, C, P].
        strength: b, [G, C, 1].
        log_decay: log a <= 0, [G, C, 1], or None for a = 1.

    Returns:
        [G, C, P] and [G, P, r].
    """
    keys_in, keys_out = key * strength, key
    overlaps, scores = keys_in @ key.mT, query @ key.mT  # [G, C, C]
    if log_decay is not None:
        decay = log_decay.cumsum(-2)  # only differences of it are used, so no exponent is above 0
        last = decay[:, -1:]
        between = (decay - decay.mT).clamp_max(0).exp()
        overlaps, scores = overlaps * between, scores * between
        query, keys_in = query * decay.exp(), keys_in * decay.exp()
        keys_out = key * (last - decay).exp()
        known, memory = memory, memory * last.exp()
    else:
        known = memory
    written = torch.linalg.solve_triangular(  # it does not read the upper triangle, nor the diagonal
        overlaps, torch.baddbmm(value * strength, keys_in, known.mT, alpha=-1), upper=False, unitriangular=True
    )
    read = torch.baddbmm(query @ known.mT, scores.tril(), written)
    return read, torch.baddbmm(memory, written.mT, keys_out)
