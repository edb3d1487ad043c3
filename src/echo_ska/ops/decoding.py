"""One token at a time without a factorisation: the inverse Gram matrix is carried along, everything in place."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from echo_ska.ops.arguments import require_power
from echo_ska.ops.decoding_state import DecodingState, blocks
from echo_ska.ops.native.build import Step
from echo_ska.ops.native.step import can_step, describe, native_step
from echo_ska.ops.triton.support import can_decode

__all__ = ["DecodingState", "advance", "decode_step"]


def decode_step(
    state: DecodingState,
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
    refresh_interval: int | None = None,
) -> Tensor:
    """Write one token a row into `state`, in place, and read it: `spectral_koopman_attention` for T = 1.

    O(r^2 + r P) a head, whatever the context: the inverse follows the Gram matrix by the Sherman-Morrison formula.
    The values of tokens are not checked, so nothing waits for a GPU; what is not finite is found when the inverse is
    computed anew (`DecodingState.prepare`).

    Args:
        state: of N sequences; the caller's own, since it is changed.
        query, key: [N, H, r].
        value: [N, H, P].
        write_weight: [N, H] in [0, 1]; None = 1.
        ridge: > 0, scalar or [H]: the one `state` was made with.
        power: K >= 0.
        blend: [N, H] in [0, 1], or None for the pure power filter.
        gain, scale: scalar or [H].
        refresh_interval: the one `state` was made with.

    Returns:
        [N, H, P] in the dtype of `value`.

    Raises:
        RuntimeError: a gradient would be needed, the state was made in inference mode and this is outside of it, or
            the call is being compiled (compile `advance` instead).
        ValueError: a shape or device does not fit the state, the state was made for another reading, or the power is
            no integer >= 0.
        ArithmeticError: see `DecodingState.prepare`.

    Source: docs/method.md, section 3.
    """
    if torch.compiler.is_compiling():
        raise RuntimeError("decode_step decides on the host: compile `advance` and call state.prepare(ridge) before it")
    frozen_at = None if state.frozen is None else state.frozen.refresh_interval
    if refresh_interval != frozen_at:
        raise ValueError(f"the state was made for refresh_interval {frozen_at}, not {refresh_interval}: use the same")
    if state.frozen is not None and power != state.frozen.power:
        raise ValueError(f"the state was folded for power {state.frozen.power}, not {power}: use the same")
    require_power(power)
    state.prepare(ridge)
    return advance(state, query, key, value, write_weight, power=power, blend=blend, gain=gain, scale=scale)


def advance(
    state: DecodingState,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    write_weight: Tensor | None = None,
    *,
    power: int = 2,
    blend: Tensor | None = None,
    gain: Tensor | float = 1.0,
    scale: Tensor | float = 1.0,
) -> Tensor:
    """The part of `decode_step` that is a program on tensors alone: `torch.compile` and `torch.export` take it whole.

    Call `state.prepare(ridge)` before every token, outside of what is compiled. Arguments, result and errors are
    those of `decode_step`.
    """
    _check_token(state, query, key, value, (write_weight, blend), (gain, scale))
    if torch.is_autocast_enabled(query.device.type):
        with torch.autocast(query.device.type, enabled=False):
            return advance(state, query, key, value, write_weight, power=power, blend=blend, gain=gain, scale=scale)
    if not torch.compiler.is_compiling() and can_step(state.moments):
        _begin(state, key, write_weight)
        output = native_step(_step_of(state), query, key, value, write_weight, blend, gain, scale, power)
        _tell_autograd(state)
        return output
    if not torch.compiler.is_compiling() and state.frozen is None and can_decode(state.moments):
        _begin(state, key, write_weight)
        return _triton_step(state, query, key, value, write_weight, blend, gain, scale, power)
    work = _views_of(state)
    if write_weight is None:
        work.key.copy_(key)
        work.value.copy_(value)
    else:
        work.weight.copy_(write_weight).sqrt_()
        work.key.copy_(key).mul_(work.weight_column)
        work.value.copy_(value).mul_(work.weight_column)
    work.previous_key.copy_(state.previous_key)
    if torch.compiler.is_compiling() or not state._all_begun:
        _keep_first(state, work.key)

    work.moments.addcmul_(work.token_column, work.key_row)
    # (G + x x^T)^-1 = J - h h^T / (1 + x^T h) with h = J x (Sherman & Morrison 1950).
    torch.bmm(work.key_row, work.inverse, out=work.h_row)
    spread = torch.baddbmm(work.one, work.h_row, work.key_column)
    work.inverse.baddbmm_(work.h_column, work.h_row / spread, alpha=-1)
    state.previous_key.copy_(work.key)
    state.count.add_(1)
    state.position.add_(1)

    work.query.copy_(query)
    if state.frozen is None:
        point = plain = torch.bmm(work.query_row, work.inverse)  # [N H, 1, r]
        for _ in range(power):
            point = torch.bmm(torch.bmm(point, work.lag_transposed), work.inverse)
        if power > 0:
            point = _filtered(point, plain, work, power, gain, blend)
        torch.bmm(point, work.value_transposed, out=work.output_row)
    else:
        plain, filtered = torch.bmm(work.query_row, work.readouts).chunk(2, dim=-1)  # [N H, 1, P] each
        work.output_row.copy_(_filtered(filtered, plain, work, power, gain, blend) if power > 0 else plain)
    if isinstance(scale, Tensor) or scale != 1:
        work.output.mul_(scale.reshape(-1, 1) if isinstance(scale, Tensor) else scale)
    return work.output.to(value.dtype, copy=True)


def _triton_step(
    state: DecodingState,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    write_weight: Tensor | None,
    blend: Tensor | None,
    gain: Tensor | float,
    scale: Tensor | float,
    power: int,
) -> Tensor:
    from echo_ska.ops.triton.decoding import decode_step as triton_step  # imports triton

    moments = state.moments
    plain, filtered = None, moments.new_ones(1) * scale * (gain**power if power > 0 else 1.0)
    if blend is not None and power > 0:
        blend = blend.to(moments.dtype)
        plain, filtered = (1 - blend) * scale, blend * filtered
    output = triton_step(
        *(moments, state.inverse, state.previous_key, query, key, value, write_weight),
        *(plain, filtered.expand(key.shape[:2]), power),
    )
    _tell_autograd(state)
    state.count.add_(1)
    state.position.add_(1)
    return output


def _tell_autograd(state: DecodingState) -> None:
    """Kernels have changed the state: a backward pass that has saved one of its tensors must not go on."""
    increment_version((state.moments, state.inverse, state.previous_key, state.count, state.position))


def _begin(state: DecodingState, key: Tensor, write_weight: Tensor | None) -> None:
    if state.moments.is_inference() and not torch.is_inference_mode_enabled():
        raise RuntimeError(
            "the state was made in inference mode and is changed outside of it: clone() it outside first"
        )
    if not state._all_begun:
        key = key.to(state.first_key.dtype)
        _keep_first(state, key if write_weight is None else key * write_weight.to(key.dtype).sqrt().unsqueeze(-1))


def _keep_first(state: DecodingState, key: Tensor) -> None:
    state.first_key.addcmul_(key, (state.count == 0)[:, None, None].to(key.dtype))  # it is 0 while empty


def _filtered(
    filtered: Tensor, plain: Tensor, work: _Views, power: int, gain: Tensor | float, blend: Tensor | None
) -> Tensor:
    """The gains that a filtered row [N H, 1, n] still lacks (in place), and its blend with the plain one."""
    if isinstance(gain, Tensor):
        work.gain.copy_(gain)
        for _ in range(power):
            filtered.mul_(work.gain_matrix)
    elif gain != 1:
        filtered.mul_(gain**power)
    if blend is None:
        return filtered
    work.blend.copy_(blend)
    return torch.lerp(plain, filtered, work.blend_matrix)


def _step_of(state: DecodingState) -> Step:
    """Described once a state, because that takes as long as the step itself."""
    places = _places_of(state)
    if state._step is None or state._step[0] != places:
        state._step = places, describe(state)
    step: Step = state._step[1]
    return step


def _tensors_of(state: DecodingState) -> tuple[Tensor, ...]:
    """What a step or the views of a state look into."""
    tensors = state.moments, state.inverse, state.previous_key, state.count, state.position
    return tensors if state.frozen is None else (*tensors, state.frozen.readouts)


def _places_of(state: DecodingState) -> list[int]:
    """Which tensors those are and where their memory lies: a tensor's memory may move while the tensor stays."""
    tensors = _tensors_of(state)
    return [*map(id, tensors), *map(Tensor.data_ptr, tensors)]


def _views_of(state: DecodingState) -> _Views:
    """Taken once a state, because in eager mode a view costs as much as a small product."""
    if torch.compiler.is_compiling():
        return _Views(state)
    if state._views is None or not state._views.look_into(state):
        state._views = _Views(state)
    return state._views


class _Views:
    """The tensors of a state as stacks of matrices, one a row and head, and room for one token's vectors."""

    def __init__(self, state: DecodingState) -> None:
        rows, heads, height, rank = state.moments.shape
        matrices, head_dim = rows * heads, height - 2 * rank
        frozen = state.frozen
        self._sources = _tensors_of(state)  # kept alive, so that no other tensor gets their identity
        self._places = None if torch.compiler.is_compiling() else _places_of(state)
        self.moments = state.moments.view(matrices, height, rank)
        self.inverse = state.inverse.view(matrices, rank, rank)
        _, self.lag_transposed, value_moment = blocks(self.moments)
        self.value_transposed = value_moment.mT
        if frozen is not None:
            self.readouts = frozen.readouts.view(matrices, 2 * head_dim, rank).mT

        room = state.moments.new_empty
        token = room(rows, heads, height)  # [x_t; x_{t-1}; u_t]
        self.key, self.previous_key, self.value = token.split([rank, rank, head_dim], dim=-1)
        self.token_column = token.view(matrices, height, 1)
        self.key_column = self.token_column[:, :rank]
        self.key_row = self.key_column.mT
        self.h_row = room(matrices, 1, rank)
        self.h_column = self.h_row.mT
        self.query, self.output = room(rows, heads, rank), room(rows, heads, head_dim)
        self.query_row, self.output_row = self.query.view(matrices, 1, rank), self.output.view(matrices, 1, head_dim)
        self.weight, self.gain, self.blend = room(rows, heads), room(rows, heads), room(rows, heads)
        self.weight_column = self.weight.unsqueeze(-1)
        self.gain_matrix, self.blend_matrix = self.gain.view(matrices, 1, 1), self.blend.view(matrices, 1, 1)
        self.one = state.moments.new_ones(1, 1, 1)

    def look_into(self, state: DecodingState) -> bool:
        """Whether these are still the tensors of that state, and lie where they lay."""
        return self._places == _places_of(state)


def _check_token(
    state: DecodingState,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    per_token: tuple[Tensor | None, ...],
    per_call: tuple[Tensor | float, ...],
) -> None:
    keys, (rows, heads, height, rank) = state.first_key.shape, state.moments.shape
    if query.shape != keys or key.shape != keys or value.shape != (rows, heads, height - 2 * rank):
        raise ValueError(
            f"query and key must be {list(keys)} and value {[rows, heads, height - 2 * rank]} for this state, got "
            f"{list(query.shape)}, {list(key.shape)} and {list(value.shape)}"
        )
    for tensor in per_token:
        if tensor is not None and tensor.shape != (rows, heads):
            raise ValueError(f"write_weight and blend must be {[rows, heads]} for this state, got {list(tensor.shape)}")
    device = state.moments.device
    names = ("query", "key", "value", "write_weight", "blend")
    for name, tensor in zip(names, (query, key, value, *per_token), strict=True):
        if tensor is not None and tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device} and the state on {device}: move them to one device")
    if torch.is_grad_enabled():
        inputs = (query, key, value, *per_token, *per_call)
        if any(isinstance(given, Tensor) and given.requires_grad for given in inputs):
            raise RuntimeError(
                "decoding changes its state in place and has no gradient: call it under torch.no_grad(), or take "
                "spectral_koopman_attention for training"
            )
