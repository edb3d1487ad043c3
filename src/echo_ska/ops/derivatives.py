"""Backward passes that are written by hand: they have no derivative of their own, and refuse it rather than give 0."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Gradients = tuple[Tensor | None, ...]


def refuse_second_derivative(*_: Any) -> Any:
    """The backward pass of a backward pass.

    Raises:
        RuntimeError: always.
    """
    raise RuntimeError(
        "this backend of spectral_koopman_attention has first derivatives only: for second ones (create_graph=True) "
        'call it with backend="recurrent"'
    )


def first_derivatives(
    compute: Callable[[Any, tuple[Tensor | None, ...], Gradients], Gradients],
) -> Callable[..., Gradients]:
    """The `backward` of an autograd function from `compute(ctx, saved tensors, gradients of the outputs)`.

    Where a graph of the backward pass is asked for, its results depend on everything that they were computed from,
    and what is differentiated through them is refused. (`once_differentiable` knows of the outputs' gradients alone:
    the derivative by a saved tensor comes out as 0 there.) Autocast is off, as it is in the forward pass.

    Args:
        compute: the first saved tensor is on the device where it computes.
    """

    @functools.wraps(compute)
    def backward(ctx: Any, *grads: Tensor | None) -> Gradients:
        saved = ctx.saved_tensors  # asked for once: what was checkpointed may be unpacked no more often
        with torch.autocast(saved[0].device.type, enabled=False):
            if not torch.is_grad_enabled():
                return compute(ctx, saved, grads)
            found: Gradients = _FirstDerivatives.apply(lambda: compute(ctx, saved, grads), *grads, *saved)
            return found

    return backward


class _FirstDerivatives(torch.autograd.Function):
    """A backward pass as one function of its inputs."""

    @staticmethod
    def forward(ctx: Any, compute: Callable[[], Gradients], *inputs: Tensor | None) -> Gradients:
        return compute()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        return refuse_second_derivative()
