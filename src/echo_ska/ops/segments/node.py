"""The parallel read as two operators that torch.compile and torch.export take as nodes, whatever the lengths.

What a forward pass keeps has a size that depends on how the call is cut, which is not known while a graph is captured.
So nothing is kept: the backward node reads again first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from echo_ska.ops.derivatives import refuse_second_derivative
from echo_ska.ops.segments.passes import backward, forward, threads_of
from echo_ska.ops.segments.values import Keep


def _read(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    write_weight: Tensor | None,
    plain: Tensor | None,
    filtered: Tensor,
    ridge: Tensor,
    gram: Tensor,
    lag_moment: Tensor,
    value_moment: Tensor,
    previous_key: Tensor,
    frozen_gram: Tensor | None,
    frozen_lag: Tensor | None,
    frozen_value: Tensor | None,
    position: Tensor | None,
    bounds: Tensor | None,
    power: int,
    causal: bool,
    interval: int,
    chunk_size: int,
    final_state: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The output and the three sums of `parallel_read`, contiguous; arguments as of `passes.forward`."""
    inputs = (query, key, value, write_weight, plain, filtered, ridge, gram, lag_moment, value_moment, previous_key)
    frozen = (frozen_gram, frozen_lag, frozen_value)
    settings = (power, causal, interval, chunk_size, int(Keep.NOTHING), final_state, threads_of(query))
    output, *sums = forward(*inputs, *frozen, position, bounds, *settings)
    return output.contiguous(), sums[0].contiguous(), sums[1].contiguous(), sums[2].contiguous()


def _read_backward(
    grads: list[Tensor],
    has_grad: list[bool],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    write_weight: Tensor | None,
    plain: Tensor | None,
    filtered: Tensor,
    ridge: Tensor,
    gram: Tensor,
    lag_moment: Tensor,
    value_moment: Tensor,
    previous_key: Tensor,
    frozen_gram: Tensor | None,
    frozen_lag: Tensor | None,
    frozen_value: Tensor | None,
    position: Tensor | None,
    bounds: Tensor | None,
    power: int,
    causal: bool,
    interval: int,
    chunk_size: int,
    final_state: bool,
) -> list[Tensor]:
    """Gradients of the 14 tensors before `position`, contiguous; empty where there is no such tensor.

    Args:
        grads: of the output, gram, lag and value moment that have one.
        has_grad: which of the four these are.
    """
    inputs = (query, key, value, write_weight, plain, filtered, ridge, gram, lag_moment, value_moment, previous_key)
    tensors = (*inputs, frozen_gram, frozen_lag, frozen_value)
    settings = (power, causal, interval, chunk_size, int(Keep.TOKENS), final_state, threads_of(query))
    given = iter(grads)
    output_grads = [next(given) if has else None for has in has_grad]
    with torch.autocast(query.device.type, enabled=False):
        _, _, _, _, *saved = forward(*tensors, position, bounds, *settings)
        found = backward(*output_grads, *tensors, position, bounds, *saved, *settings)
    return [value.new_empty(0) if grad is None else grad.clone(memory_format=torch.contiguous_format) for grad in found]


read_node = torch.library.custom_op("echo_ska::parallel_read", _read, mutates_args=())
_backward_node = torch.library.custom_op("echo_ska::parallel_read_backward", _read_backward, mutates_args=())


@read_node.register_fake
def _read_shapes(query: Tensor, key: Tensor, value: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gram, lag_moment, value_moment = others[4:7]
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    output = value.new_empty(value.shape, dtype=dtype)
    sums = [tensor.new_empty(tensor.shape) for tensor in (gram, lag_moment, value_moment)]
    return output, sums[0], sums[1], sums[2]


@_backward_node.register_fake
def _backward_shapes(grads: list[Tensor], has_grad: list[bool], *arguments: Any) -> list[Tensor]:
    value = arguments[2]
    return [value.new_empty(0) if tensor is None else tensor.new_empty(tensor.shape) for tensor in arguments[:14]]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:16])
    ctx.settings = inputs[16:]
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    has_grad = [grad is not None for grad in grads]
    found = _backward_node([grad for grad in grads if grad is not None], has_grad, *saved, *ctx.settings)
    given = [None if tensor is None else grad for tensor, grad in zip(saved[:14], found, strict=True)]
    return *given, None, None, *(None for _ in ctx.settings)


read_node.register_autograd(_backward, setup_context=_save)
_backward_node.register_autograd(refuse_second_derivative)
