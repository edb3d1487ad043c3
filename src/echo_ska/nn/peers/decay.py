"""How fast a memory forgets, as a function of the token."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echo_ska.nn.aids import precise
from echo_ska.nn.initialization import start_as, start_steps

# Decays per channel enter a chunk's products as exp(g_t - m) and exp(m - g_s), with m in the middle of the chunk. In
# float32, exp(16 * 5) is finite: so a token may forget down to exp(-5) at most, and a chunk have 32 tokens.
STRONGEST = -5.0
MOST_CHUNK_SIZE = 32


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
        """Rates uniform in [1, 16], steps by `start_steps`; see `Mamba2`."""
        start_as(self.A_log, torch.empty_like(self.A_log).uniform_(1, 16).log())
        start_steps(self.dt_bias)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., d] -> log a [..., H, 1], at most 0, in float32 or finer."""
        scores = precise(self.proj(hidden_states.to(self.proj.weight.dtype)))
        rates = self.A_log.to(scores.dtype).exp()
        return (-rates * F.softplus(scores + self.dt_bias.to(scores.dtype))).unsqueeze(-1)


class LowRank(nn.Module):
    """W_2 f(W_1 x) + c for every key channel of every head: a vector that costs few parameters.

    Args:
        hidden_size: d.
        num_heads: H.
        width: channels of a head, r.
        low_rank: rows of W_1 [low_rank, d].
        tanh: f is tanh, not the identity.
        starts: where c starts, H r numbers; W_2 then starts at 0. None starts both as torch does.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        width: int,
        low_rank: int,
        *,
        tanh: bool = False,
        starts: list[float] | None = None,
    ) -> None:
        super().__init__()
        self.num_heads, self.tanh, self.starts = num_heads, tanh, starts
        self.down = nn.Linear(hidden_size, low_rank, bias=False)
        self.up = nn.Linear(low_rank, num_heads * width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start c, if its start is given; what else there is starts as its modules start it."""
        if self.starts is not None:
            nn.init.zeros_(self.up.weight)
            start_as(self.up.bias, torch.tensor(self.starts))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., d] -> [..., H, r], in the parameters' dtype."""
        low = self.down(hidden_states.to(self.down.weight.dtype))
        return self.up(low.tanh() if self.tanh else low).unflatten(-1, (self.num_heads, -1))


def centre(decay: Tensor) -> Tensor:
    """The sum of log decays [G, C, r] in the middle of a chunk, [G, 1, r]; it cancels, so it has no gradient."""
    return decay[:, (decay.shape[1] - 1) // 2, None].detach()


def spread(ends: tuple[float, float], count: int) -> list[float]:
    """`count` numbers from the first end to the second, evenly in their logarithm."""
    low, high = (math.log(end) for end in ends)
    return [math.exp(low + (high - low) * index / max(count - 1, 1)) for index in range(count)]
