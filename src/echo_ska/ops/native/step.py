"""One decoded token by the compiled kernel: every head of a layer in one call, in place."""

from __future__ import annotations

import torch
from torch import Tensor

from echo_ska.ops.native.build import Step, library, why_unavailable

MOST_RANK = 1024  # as in kernels.c


def can_step(moments: Tensor, key: Tensor) -> bool:
    """Whether the kernel can take a token for this state."""
    fits = moments.device.type == "cpu" and moments.dtype == torch.float64 and key.shape[-1] <= MOST_RANK
    return fits and why_unavailable() is None


def native_step(
    moments: Tensor,
    inverse: Tensor,
    previous_key: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    write_weight: Tensor | None,
    blend: Tensor | None,
    gain: Tensor | float,
    scale: Tensor | float,
    power: int,
) -> Tensor:
    """Write a token into `moments` [N, H, 2 r + P, r], `inverse` [N, H, r, r] and `previous_key` [N, H, r], and read.

    Args and result are those of `ops.decoding.advance`; arithmetic is float64.

    Returns:
        [N, H, P] in the dtype of `value`.
    """
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    rows, heads, rank = key.shape
    output = torch.empty(value.shape, dtype=dtype)
    step = Step(
        is_double=dtype == torch.float64,
        matrices=rows * heads,
        heads=heads,
        rank=rank,
        head_dim=value.shape[-1],
        power=power,
        uniform_gain=1.0 if isinstance(gain, Tensor) else gain,
        uniform_scale=1.0 if isinstance(scale, Tensor) else scale,
    )
    step.point(moments=moments, inverse=inverse, previous_key=previous_key, output=output)
    for name, given in (("query", query), ("key", key), ("value", value), ("write_weight", write_weight)):
        step.point(**{name: None if given is None else given.to(dtype).contiguous()})
    step.point(blend=None if blend is None else blend.to(dtype).contiguous())
    for name, number in (("gain", gain), ("scale", scale)):
        if isinstance(number, Tensor):
            step.point(**{name: number.to(dtype).expand(heads).contiguous()})
    library().echo_ska_step(step)
    return output.to(value.dtype)
