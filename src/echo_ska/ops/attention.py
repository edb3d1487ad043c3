"""The front door."""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor

from echo_ska.ops.arguments import Arguments, check_arguments
from echo_ska.ops.chunked import chunked_attention
from echo_ska.ops.native import native_attention, why_not_native
from echo_ska.ops.recurrent import recurrent_attention
from echo_ska.ops.state import RecurrentState
from echo_ska.ops.triton.support import refusal

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "recurrent", "chunked", "native", "triton")


def spectral_koopman_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    write_weight: Tensor | None = None,
    *,
    ridge: Tensor | float,
    power: int = 2,
    blend: Tensor | None = None,
    gain: Tensor | float = 1.0,
    scale: Tensor | float = 1.0,
    causal: bool = True,
    refresh_interval: int | None = None,
    initial_state: RecurrentState | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    chunk_size: int | None = None,
    recompute: bool | None = None,
    backend: str = "auto",
) -> tuple[Tensor, RecurrentState | None]:
    """Spectral Koopman Attention: ridge regression of values on keys, read through a power of the keys' operator.

    With x = sqrt(b) k and u = sqrt(b) v, a read sees G = sum x x^T, M = sum x_t x_{t-1}^T, C = sum u x^T and gives

        y = scale * C L^-T f(A) L^-1 q,    L L^T = G + ridge I,    A = L^-1 M L^-T,
        f(A) = (gain A)^power    or    (1 - blend) I + blend (gain A)^power.

    Which tokens the sums run over is the one choice that changes the function:

    - `causal=True, refresh_interval=None`: token t reads all s <= t, itself included. Exact; the default.
    - `causal=True, refresh_interval=S`: token t reads the first floor(t / S) * S tokens (the paper's chunk-causal
      reading); the first chunk reads zeros, S = 1 reads before it writes.
    - `causal=False`: every token reads all tokens whose weight is not zero (the paper's prefix or mask mode).

    A weight of 0 equals absence at the start of a sequence and, for reads before it, at the end; inside it also
    breaks the lag pair around it, so padding is removed (`cu_seqlens`) rather than masked.

    Statistics are summed and factored in float64 (float32 where the device has none), whatever autocast says; tokens
    are float32 for inputs below float64, but float64 where the ridge is so small that this costs gradients their digits
    (causal reads on a CPU with a ridge below 5e-3; docs/numerics.md).

    Second derivatives (a backward pass through gradients taken with `create_graph=True`) need `backend="recurrent"`;
    the others refuse them.

    Args:
        query: [B, T, H, r], floating point.
        key: [B, T, H, r]. Keys of about unit norm suit a ridge of about 1.
        value: [B, T, H, P].
        write_weight: [B, T, H] in [0, 1]; None = 1. Its gradient at exactly 0 is defined as 0.
        ridge: > 0, scalar or [H]; unless the inputs are float64 at least 5e-4, and 5e-4 times the squared norm of the
            longest stored key (docs/numerics.md).
        power: K >= 0; 0 is ridge regression without an intercept.
        blend: [B, T, H] in [0, 1], or None for the pure power filter.
        gain, scale: scalar or [H].
        causal, refresh_interval: see above.
        initial_state: what an earlier call returned; a sequence split over calls gives the same outputs.
        output_final_state: whether to return the state after the last token.
        cu_seqlens: [N + 1] boundaries of N sequences packed along time (then B = 1 and states have N rows).
        chunk_size: tokens a chunk of "chunked" and "triton"; None chooses. It does not change the function, and the
            other backends pass it over.
        recompute: keep nothing per token for the backward pass, which then computes it again; False keeps it. None
            leaves it to the backend: the CPU kernels compute again what would take more than 64 MB, and which writing
            and reading back costs more time than it saves; "chunked" keeps; "triton" always computes again.
        backend: "recurrent" (token by token: the definition and the decoder), "chunked" (parallel PyTorch),
            "native" (causal reads on a CPU, by C kernels that are compiled on first use), "triton" (GPU kernels;
            float32 or lower, rank up to 128), or "auto": recurrent for a single token, else
            native on a CPU, triton on a GPU, chunked where those cannot take the call.

    Returns:
        The output [B, T, H, P] in the dtype of `value`, and a `RecurrentState` or None.

    Raises:
        ValueError: an argument does not fit; the message says which and what to change. Values (finite, weights
            in range) are checked unless `set_value_checks(False)` or where `torch.compile` captures the call.
        ArithmeticError: a Gram matrix plus the ridge is not positive definite; names batch row and head.
        RuntimeError: in a backward pass, where it would be the second one through another backend than "recurrent".

    Source: Sridhar & Johansen, arXiv 2605.06997; docs/method.md.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be >= 1 or None, got {chunk_size}")
    arguments = check_arguments(
        query,
        key,
        value,
        write_weight,
        ridge=ridge,
        power=power,
        blend=blend,
        gain=gain,
        scale=scale,
        causal=causal,
        refresh_interval=refresh_interval,
        initial_state=initial_state,
        cu_seqlens=cu_seqlens,
    )
    if backend == "auto":
        backend = _choose(arguments, chunk_size)
        _say(backend, "single tokens" if query.shape[1] == 1 else "several tokens")
    elif backend == "triton" and (reason := refusal(arguments, chunk_size)) is not None:
        raise ValueError(f'backend "triton" cannot take this call, {reason}; or use backend="chunked"')
    elif backend == "native" and (reason := why_not_native(arguments)) is not None:
        raise ValueError(f'backend "native" cannot take this call: {reason}; use backend="chunked"')
    if backend in ("native", "chunked") and arguments.needs_float64():
        arguments = arguments.double()
    state: RecurrentState | None
    with torch.autocast(query.device.type, enabled=False):
        if query.shape[0] * query.shape[1] == 0:
            output, state = value, arguments.start().clone()
        elif backend == "recurrent":
            output, state = recurrent_attention(arguments)
        elif backend == "triton":
            from echo_ska.ops.triton.route import triton_attention  # imports triton

            output, state = triton_attention(arguments, chunk_size)
        elif backend == "native":
            output, state = native_attention(arguments, recompute, output_final_state)
        else:
            output, state = chunked_attention(arguments, chunk_size, bool(recompute), output_final_state)
    return output.to(value.dtype), state if output_final_state else None


def _choose(arguments: Arguments, chunk_size: int | None) -> str:
    """What "auto" means for this call."""
    if arguments.query.shape[1] == 1:
        return "recurrent"
    device = arguments.query.device.type
    if device == "cuda" and refusal(arguments, chunk_size) is None:
        return "triton"
    return "native" if device == "cpu" and why_not_native(arguments) is None else "chunked"


@torch.compiler.assume_constant_result  # so that it is said, once, where the call is compiled
def _say(backend: str, which: str) -> None:
    _say_once(backend, which)


@functools.cache
def _say_once(backend: str, which: str) -> None:
    """Log, the first time only, what "auto" chose."""
    logger.info('spectral_koopman_attention: backend "auto" is "%s" for %s', backend, which)
