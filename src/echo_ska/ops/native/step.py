"""One decoded token by the compiled kernel: every head of a layer in one call, in place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from echo_ska.ops.native.build import Step, library, why_unavailable
from echo_ska.ops.native.workers import openmp

if TYPE_CHECKING:
    from echo_ska.ops.decoding_state import DecodingState

MOST_ROWS = 2048  # 2 r + P, as in kernels.c


def can_step(moments: Tensor) -> bool:
    """Whether the kernel can take a token for a state with these moments, [N, H, 2 r + P, r]."""
    return (
        moments.dtype == torch.float64
        and moments.device.type == "cpu"
        and moments.shape[-2] <= MOST_ROWS
        and why_unavailable() is None
    )


def describe(state: DecodingState) -> Step:
    """A step that points to the tensors of a state, to be used for token after token while they are the state's."""
    rows, heads, height, rank = state.moments.shape
    step = Step(rows=rows, heads=heads, rank=rank, head_dim=height - 2 * rank)
    step.point(moments=state.moments, inverse=state.inverse, previous_key=state.previous_key)
    step.point(count=state.count, position=state.position)
    step.point(readouts=None if state.frozen is None else state.frozen.readouts)
    return step


def native_step(
    step: Step,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    write_weight: Tensor | None,
    blend: Tensor | None,
    gain: Tensor | float,
    scale: Tensor | float,
    power: int,
) -> Tensor:
    """Write a token into the state that `step` describes, and read it.

    Args and result are those of `ops.decoding.advance`; arithmetic is float64.

    Returns:
        [N, H, P] in the dtype of `value`.
    """
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    # Named here, so that they live until the kernel has read them.
    query, key, value_read = _laid_out(query, dtype), _laid_out(key, dtype), _laid_out(value, dtype)
    write_weight = None if write_weight is None else _laid_out(write_weight, dtype)
    blend = None if blend is None else _laid_out(blend, dtype)
    gains = _laid_out(gain.cpu().expand(step.heads), dtype) if isinstance(gain, Tensor) else None
    scales = _laid_out(scale.cpu().expand(step.heads), dtype) if isinstance(scale, Tensor) else None
    output = torch.empty(value.shape, dtype=dtype, device=value.device)
    step.is_double, step.power = dtype == torch.float64, power
    step.query, step.key, step.value = query.data_ptr(), key.data_ptr(), value_read.data_ptr()
    step.write_weight = None if write_weight is None else write_weight.data_ptr()
    step.blend = None if blend is None else blend.data_ptr()
    step.gain, step.uniform_gain = (gains.data_ptr(), 1.0) if gains is not None else (None, gain)
    step.scale, step.uniform_scale = (scales.data_ptr(), 1.0) if scales is not None else (None, scale)
    step.output = output.data_ptr()
    # One thread for what fits into its cache: a sequence's step is too short to wait for others.
    threads = torch.get_num_threads() if step.rows > 1 else 1
    team = openmp() if threads > 1 else None
    library().echo_ska_step(step, 1 if team is None else threads, team)
    return output if dtype == value.dtype else output.to(value.dtype)


def _laid_out(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if tensor.dtype is not dtype:
        tensor = tensor.to(dtype)
    return tensor if tensor.is_contiguous() else tensor.contiguous()
