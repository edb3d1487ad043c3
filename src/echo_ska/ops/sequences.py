"""What a parallel route needs to know of a call beside its reads: coefficients, boundaries, the states' ends."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from echo_ska.algebra import SufficientStatistics, weighted
from echo_ska.ops.arguments import Arguments


def coefficients(arguments: Arguments, dtype: torch.dtype) -> tuple[Tensor | None, Tensor]:
    """What scale, gain and blend come to: y_t = C (plain_t p_0 + filtered_t p_K), where p_j = (G~^-1 M)^j G~^-1 q_t.

    Returns:
        plain (None where nothing of p_0 is added to p_K) and filtered, [B, T, H] in `dtype`, with their gradients.
    """
    shape = arguments.query.shape[:3]
    if arguments.power == 0:
        return None, arguments.scale.to(dtype).expand(shape)
    filtered = arguments.scale * arguments.gain**arguments.power  # [H]
    if arguments.blend is None:
        return None, filtered.to(dtype).expand(shape)
    blend = arguments.blend.to(dtype)
    return (1 - blend) * arguments.scale.to(dtype), blend * filtered.to(dtype)


def sequence_bounds(arguments: Arguments) -> list[int]:
    """Sequence n holds the flat tokens (b * T + t) from entry n to entry n + 1."""
    if arguments.cu_seqlens is not None:
        return arguments.cu_seqlens
    batch, time = arguments.query.shape[:2]
    return [row * time for row in range(batch + 1)]


def statistics_after(
    arguments: Arguments,
    initial: SufficientStatistics,
    bounds: Sequence[int],
    taken: Sequence[int],
    sums: tuple[Tensor, Tensor, Tensor],
) -> SufficientStatistics:
    """The statistics after the first taken[n] tokens of each sequence, whose gram, lag and value moments are `sums`.

    `initial` are those that the call started from.
    """
    device = arguments.key.device
    counts = torch.tensor(list(taken), device=device)
    starts = torch.tensor(list(bounds[:-1]), device=device)
    any_token = (counts > 0)[:, None, None]
    begins_here = any_token & (initial.count == 0)[:, None, None]
    first, last = (
        _weighted_keys(arguments, places.clamp(0, bounds[-1] - 1)).to(initial.gram.dtype)
        for places in (starts, starts + counts - 1)
    )
    return SufficientStatistics(
        *sums,
        first_key=torch.where(begins_here, first, initial.first_key),
        previous_key=torch.where(any_token, last, initial.previous_key),
        count=initial.count + counts,
    )


def _weighted_keys(arguments: Arguments, places: Tensor) -> Tensor:
    """sqrt(b) k of some flat tokens, [len(places), H, r]."""
    key = arguments.key.flatten(0, 1)[places]
    weight = None if arguments.write_weight is None else arguments.write_weight.flatten(0, 1)[places].to(key.dtype)
    return weighted(key, key, weight)[0]
