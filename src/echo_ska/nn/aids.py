"""What helps every mixer that stores pairs (key, value) to learn recall, SKA and its peers alike."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# The write gate is a sigmoid stretched from (0, 1) to (-s, 1 + s) and cut to [0, 1] (the stretch of the hard concrete
# distribution, Louizos et al., arXiv 1712.01312): what a head has learnt not to store gets a weight of exactly 0. A
# plain sigmoid leaves a little of every token behind, which adds up.
GATE_STRETCH = 0.05
NORM_EPS = 0.1


def precise(tensor: Tensor) -> Tensor:
    """The tensor in float32, or finer where it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def unit_norm(vectors: Tensor) -> Tensor:
    """y / sqrt(|y|^2 + eps^2) of every vector [..., r]: of unit norm where |y| is well above eps = 0.1, 0 at 0.

    Smooth, because zeros do occur: delayed by one token, the first key of every sequence starts at 0, and there the
    derivative of y / |y| is as large as its guard against dividing by 0 lets it be.
    """
    return vectors * (vectors.square().sum(dim=-1, keepdim=True) + NORM_EPS**2).rsqrt()


def stretched_sigmoid(scores: Tensor, stretch: float = GATE_STRETCH) -> Tensor:
    """A sigmoid stretched to (-s, 1 + s) and cut to [0, 1]: exactly 0 below about s, 1 above about 1 - s."""
    return ((1 + 2 * stretch) * torch.sigmoid(scores) - stretch).clamp(0, 1)


def open_at_random(weight: Tensor, probability: float, cu_seqlens: Tensor | None = None) -> Tensor:
    """Gate dropout: write weights [B, T, H, ...], with all of a head's in a sequence set to 1 with this probability.

    For training alone: a model that must also do without its gates does not come to rely on them.

    Args:
        weight: what the gates say.
        probability: in [0, 1).
        cu_seqlens: [N + 1] boundaries of the sequences of a packed batch, B = 1; None for one a row.
    """
    opened = drawn_by_sequence(weight, weight.shape[2], cu_seqlens) < probability
    opened = opened.view(*opened.shape, *[1] * (weight.dim() - 3))
    return torch.where(opened, torch.ones_like(weight), weight)


def left_out_at_random(branch: Tensor, probability: float, cu_seqlens: Tensor | None = None) -> Tensor:
    """Stochastic depth (Huang et al., arXiv 1603.09382): a branch [B, T, d], 0 all over a sequence at this probability.

    For training alone. Unlike theirs, what stays is not scaled: the layers above read it as they will in inference, and
    learn to do without it.

    Args:
        branch: what is to be added to the residual stream.
        probability: in [0, 1).
        cu_seqlens: [N + 1] boundaries of the sequences of a packed batch, B = 1; None for one a row.
    """
    kept = drawn_by_sequence(branch, 1, cu_seqlens) >= probability
    return torch.where(kept, branch, torch.zeros_like(branch))


def drawn_by_sequence(like: Tensor, count: int, cu_seqlens: Tensor | None) -> Tensor:
    """So many uniform numbers in [0, 1) for every sequence of [B, T, ...]: [B, 1, n], or [1, T, n] where packed."""
    sequences = like.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1
    drawn = torch.rand(sequences, count, device=like.device)
    if cu_seqlens is None:
        return drawn.unsqueeze(1)
    return drawn.repeat_interleave(cu_seqlens.diff().to(drawn.device), dim=0).unsqueeze(0)


def require_probability(name: str, value: float) -> None:
    """Raise ValueError unless `value` is in [0, 1)."""
    if not is_number(value) or not 0 <= value < 1:
        raise ValueError(f"{name} must be at least 0 and below 1, got {value!r}")


def require_whole(name: str, value: object, least: int, *, optional: bool = False) -> None:
    """Raise ValueError unless `value` is an integer of at least `least`, or None where that is an option."""
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer >= {least}{' or None' if optional else ''}, got {value!r}")


def is_number(value: object) -> bool:
    """Whether it is an integer or a float, infinite and undefined ones included."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def gate_score(weight: float, stretch: float = GATE_STRETCH) -> float:
    """The score whose `stretched_sigmoid` is `weight`, in (0, 1): where a gate's bias starts."""
    gate = (weight + stretch) / (1 + 2 * stretch)
    return math.log(gate / (1 - gate))


def head_norm(read: Tensor, norm: nn.Module | None) -> Tensor:
    """What each head has read, [..., H, P], normalised in the norm's dtype if there is one."""
    return read if norm is None else norm(read.to(norm_weight(norm).dtype))


def norm_weight(norm: nn.Module) -> Tensor:
    """The weight of a norm, which lies deeper where a tool such as PEFT has wrapped it."""
    return norm.weight if isinstance(norm, nn.RMSNorm) else next(norm.parameters())
