"""Backward passes that are written by hand: they have no derivative of their own, and refuse it rather than give 0."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Gradients = tuple[Tensor | None, ...]

OF_A_BACKEND = (
    "this backend of spectral_koopman_attention has first derivatives only: for second ones (create_graph=True) "
    'call it with backend="recurrent"'
)


def refuse_second_derivative(*_: Any) -> Any:
    """The backward pass of the backward pass of a backend.

    Raises:
        RuntimeError: always.
    """
    raise RuntimeError(OF_A_BACKEND)


def first_derivatives(
    compute: Callable[[Any, tuple[Tensor | None, ...], Gradients], Gradients], *, refusal: str = OF_A_BACKEND
) -> Callable[..., Gradients]:
    """The `backward` of an autograd function from `compute(ctx, saved tensors, gradients of the outputs)`.

    Where a graph of the backward pass is asked for, its results depend on everything that they were computed from,
    and what is differentiated through them is refused. (`once_differentiable` knows of the outputs' gradients alone:
    the derivative by a saved tensor comes out as 0 there.) Autocast is off, as it is in the forward pass.

    Args:
        compute: the first saved tensor is on the device where it computes.
        refusal: what is said to who asks for a second derivative.
    """

    @functools.wraps(compute)
    def backward(ctx: Any, *grads: Tensor | None) -> Gradients:
        saved = ctx.saved_tensors  # asked for once: what was checkpointed may be unpacked no more often
        with torch.autocast(saved[0].device.type, enabled=False):
            if not torch.is_grad_enabled():
                return compute(ctx, saved, grads)
            found: Gradients = _FirstDerivatives.apply(lambda: compute(ctx, saved, grads), refusal, *grads, *saved)
            return found

    return backward


class _FirstDerivatives(torch.autograd.Function):
    """A backward pass as one function of its inputs."""

    @staticmethod
    def forward(ctx: Any, compute: Callable[[], Gradients], refusal: str, *inputs: Tensor | None) -> Gradients:
        ctx.refusal = refusal
        return compute()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        raise RuntimeError(ctx.refusal)
