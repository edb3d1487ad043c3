"""The native route: causal reads on a CPU by compiled kernels, heads in parallel."""

from __future__ import annotations

import torch
from torch import Tensor

from echo_ska.ops.arguments import Arguments
from echo_ska.ops.native.build import why_unavailable
from echo_ska.ops.native.kernels import KEPT_BYTES, kept_bytes, native_read
from echo_ska.ops.sequences import coefficients, sequence_bounds, statistics_after
from echo_ska.ops.state import MOMENTS, NOT_ITS_SUMS, RecurrentState, choose_rows


def why_not_native(arguments: Arguments) -> str | None:
    """None if the native route can take this call, else the reason."""
    if arguments.query.device.type != "cpu":
        return f"the tensors are on {arguments.query.device} and it is for the CPU"
    if not arguments.causal:
        return "it reads causally only"
    interval, state = arguments.refresh_interval, arguments.initial_state
    if interval is not None and state is not None:
        if torch.compiler.is_compiling():
            return "where a compiled call begins within a window of refresh_interval tokens is not known"
        if bool((state.position % interval != 0).any()):
            return "the call begins inside a window of refresh_interval tokens"
        if _gradients_differ(state):
            return "what is frozen in the state has a gradient other than its sums"
        if not state.begins_with_its_sums(interval):
            return NOT_ITS_SUMS
    return why_unavailable()


def _gradients_differ(state: RecurrentState) -> bool:
    """Whether the first window, which reads the sums, would send a gradient to another place than what is frozen."""
    pairs = [(getattr(state.frozen_statistics, name), getattr(state.statistics, name)) for name in MOMENTS]
    needed = (frozen.requires_grad or sums.requires_grad for frozen, sums in pairs if frozen is not sums)
    return torch.is_grad_enabled() and any(needed)


def native_attention(
    arguments: Arguments, recompute: bool | None = None, output_final_state: bool = True
) -> tuple[Tensor, RecurrentState | None]:
    """The same function as `recurrent_attention`, by compiled kernels.

    Statistics and their factors are float64; tokens are float64 if the inputs are, else float32.

    Args:
        arguments: a checked call with at least one token, for which `why_not_native` is None.
        recompute: keep nothing per token for the backward pass, which computes it again; None decides by `KEPT_BYTES`.
        output_final_state: whether the state is wanted.

    Returns:
        The output [B, T, H, P] in the compute dtype and the state after the last token of each sequence, or None.
    """
    start = arguments.start()
    initial = start.statistics
    compute = torch.float64 if arguments.value.dtype == torch.float64 else torch.float32
    plain, filtered = coefficients(arguments, compute)
    bounds = torch.tensor(sequence_bounds(arguments), device="cpu")
    inputs = (arguments.query, arguments.key, arguments.value, arguments.write_weight, plain, filtered)
    tokens = [None if tensor is None else tensor.to(compute).contiguous() for tensor in inputs]
    per_head = [arguments.ridge, initial.gram, initial.lag_moment, initial.value_moment, initial.previous_key]
    per_head = [tensor.double().contiguous() for tensor in per_head]
    needs_grad = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (*tokens, *per_head)
    )
    if recompute is None:
        recompute = not torch.compiler.is_compiling() and kept_bytes(arguments.query, arguments.power) > KEPT_BYTES
    output, gram, lag_moment, value_moment, frozen_gram, frozen_lag, frozen_value, *_ = native_read(
        *tokens,
        *per_head,
        initial.count,
        bounds,
        arguments.power,
        arguments.refresh_interval or 0,
        needs_grad and not recompute,
        needs_grad,
        output_final_state,
    )
    if not output_final_state:
        return output, None
    starts, lengths = bounds[:-1], bounds.diff()
    final = statistics_after(arguments, initial, starts, lengths, (gram, lag_moment, value_moment))
    frozen = None
    interval = arguments.refresh_interval
    if interval is not None:
        assert start.frozen_statistics is not None
        crossed = lengths // interval * interval
        refrozen = statistics_after(arguments, initial, starts, crossed, (frozen_gram, frozen_lag, frozen_value))
        frozen = choose_rows(crossed > 0, refrozen, start.frozen_statistics)
    return output, RecurrentState(final, frozen, start.position + lengths)
