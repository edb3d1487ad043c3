"""What a parallel route needs to know of a call beside its reads: coefficients, boundaries, the states' ends."""

from __future__ import annotations

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
    starts: Tensor,
    taken: Tensor,
    sums: tuple[Tensor, Tensor, Tensor],
) -> SufficientStatistics:
    """The statistics after the first taken[n] tokens of each sequence, whose gram, lag and value moments are `sums`.

    `initial` are those that the call started from; a sequence begins at the flat token starts[n] (`sequence_bounds`).
    """
    any_token = (taken > 0)[:, None, None]
    begins_here = any_token & (initial.count == 0)[:, None, None]
    first, last = (_weighted_keys(arguments, places).to(initial.gram.dtype) for places in (starts, starts + taken - 1))
    return SufficientStatistics(
        *sums,
        first_key=torch.where(begins_here, first, initial.first_key),
        previous_key=torch.where(any_token, last, initial.previous_key),
        count=initial.count + taken,
    )


def _weighted_keys(arguments: Arguments, places: Tensor) -> Tensor:
    """sqrt(b) k of some flat tokens in the compute dtype, [len(places), H, r]; places outside are moved to the ends."""
    compute = torch.float64 if arguments.value.dtype == torch.float64 else torch.float32
    flat = arguments.key.flatten(0, 1)
    places = places.clamp(0, flat.shape[0] - 1)
    key = flat[places].to(compute)
    weight = None if arguments.write_weight is None else arguments.write_weight.flatten(0, 1)[places].to(compute)
    return weighted(key, key, weight)[0]
