"""Feed-forward layers: SwiGLU and the Koopman MLP."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def default_intermediate_size(hidden_size: int) -> int:
    """hidden_size * 8/3, rounded up to a multiple of 64."""
    return math.ceil(hidden_size * 8 / 3 / 64) * 64


class SwiGLU(nn.Module):
    """down(SiLU(gate h) * up h): three matrices (Shazeer, arXiv 2002.05202).

    Args:
        hidden_size: d.
        intermediate_size: inner width; None = `default_intermediate_size`.
    """

    def __init__(self, hidden_size: int, intermediate_size: int | None = None) -> None:
        super().__init__()
        inner = intermediate_size or default_intermediate_size(hidden_size)
        self.gate_proj = nn.Linear(hidden_size, inner, bias=False)
        self.up_proj = nn.Linear(hidden_size, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden_size, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., d] -> [..., d]."""
        return self.down_proj(F.silu(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


class KoopmanMLP(nn.Module):
    """Lift, advance by a block-diagonal linear operator, read out.

    g = SiLU(W_lift h) in R^{d_k}; channel pairs (g_i, g_{i + d_k/2}) are multiplied by [[c, w], [-w, c]], a rotation
    and scaling whose modulus sqrt(c^2 + w^2) is clamped to at most 1; then W_readout. Two matrices instead of
    SwiGLU's three; `gated` multiplies by sigmoid(W_gate h) before the readout and has SwiGLU's count.

    The clamp is to the unit disk, so a block preserves norms only where its modulus is 1. A block outside has the
    gradient of a free one at the same place, scaled: it turns, and comes back when the loss asks for less.
    Source: Sridhar & Johansen, arXiv 2605.06997; docs/method.md section 5.

    Args:
        hidden_size: d.
        intermediate_size: d_k, even; None = `default_intermediate_size`.
        gated: see above.

    Raises:
        ValueError: `intermediate_size` is odd.
    """

    _no_weight_decay = ("cosine", "sine")  # decay would pull every block towards forgetting

    def __init__(self, hidden_size: int, intermediate_size: int | None = None, *, gated: bool = False) -> None:
        super().__init__()
        inner = intermediate_size or default_intermediate_size(hidden_size)
        if inner % 2:
            raise ValueError(f"intermediate_size must be even, its channels are rotated in pairs; got {inner}")
        self.lift_proj = nn.Linear(hidden_size, inner, bias=False)
        self.gate_proj = nn.Linear(hidden_size, inner, bias=False) if gated else None
        self.readout_proj = nn.Linear(inner, hidden_size, bias=False)
        self.cosine = nn.Parameter(torch.empty(inner // 2))
        self.sine = nn.Parameter(torch.empty(inner // 2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start every block as the identity: the layer begins as a plain two-matrix MLP."""
        nn.init.ones_(self.cosine)
        nn.init.zeros_(self.sine)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., d] -> [..., d]."""
        lifted = F.silu(self.lift_proj(hidden_states))
        # A constant: differentiated, it would cancel the gradient along the radius, and no block could leave the circle
        # on which all of them start.
        shrink = (self.cosine**2 + self.sine**2).detach().clamp_min(1).rsqrt()
        cosine, sine = (self.cosine * shrink).to(lifted.dtype), (self.sine * shrink).to(lifted.dtype)
        first, second = lifted.chunk(2, dim=-1)
        advanced = torch.cat([cosine * first + sine * second, cosine * second - sine * first], dim=-1)
        if self.gate_proj is not None:
            advanced = advanced * torch.sigmoid(self.gate_proj(hidden_states))
        return self.readout_proj(advanced)
