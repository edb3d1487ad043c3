"""How fast a memory forgets, as a function of the token."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echo_ska.nn.aids import precise
from echo_ska.nn.initialization import start_as


class HeadDecay(nn.Module):
    """log a_t = -exp(A_log) softplus(W x_t + dt_bias) per head: Mamba-2's decay, with its published start.

    A head then forgets within between about 0.6 and 1,000 tokens, all scales of time alike.

    Args:
        hidden_size: d.
        num_heads: H.
    """

    _no_weight_decay = ("A_log", "dt_bias")

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.proj = nn.Linear(hidden_size, num_heads, bias=False)
        self.A_log = nn.Parameter(torch.empty(num_heads))
        self.dt_bias = nn.Parameter(torch.empty(num_heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Rates uniform in [1, 16], steps log-uniform in [1e-3, 1e-1]; see `Mamba2`."""
        start_as(self.A_log, torch.empty_like(self.A_log).uniform_(1, 16).log())
        step = torch.empty_like(self.dt_bias).uniform_(math.log(1e-3), math.log(1e-1)).exp()
        start_as(self.dt_bias, step + torch.log(-torch.expm1(-step)))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., d] -> log a [..., H, 1], at most 0, in float32 or finer."""
        scores = precise(self.proj(hidden_states.to(self.proj.weight.dtype)))
        rates = self.A_log.to(scores.dtype).exp()
        return (-rates * F.softplus(scores + self.dt_bias.to(scores.dtype))).unsqueeze(-1)
