"""The arguments of one call of the op, checked once and brought into one form for every route."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import os

import torch
from torch import Tensor

from echo_ska.algebra import SufficientStatistics, accumulator_dtype
from echo_ska.ops.state import RecurrentState, check_fields

RIDGE_FLOOR = 5e-4
"""The least ridge, relative to the squared norm of the longest stored key where that is above 1, for inputs below
float64: half of the published 1e-3. Below it, gradients of float32 calls are rounding errors (docs/numerics.md)."""

FLOAT64_BELOW = 5e-3
"""The ridge, relative as above, below which float32 tokens of a causal read cost the gradients of keys their digits."""

WHOLE_WINDOW = 32
"""Tokens of a refresh interval from which on each window is a segment of its own: whitened by just what its tokens
read, they lose nothing in float32. Shorter ones share a factorisation, whose cost they would not repay."""

ROUNDED_UNIT_NORM = 1.1
"""The squared norm of a key up to which it counts as a unit one: some are rounded to bfloat16 after normalising."""

_checks_enabled = os.environ.get("ECHO_SKA_CHECKS", "1") != "0"


def set_value_checks(enabled: bool) -> bool:
    """Switch the checks of tensor VALUES (finite, in range) on or off; returns the old setting.

    They cost one pass over the inputs and, on a GPU, one synchronisation. The environment variable
    ECHO_SKA_CHECKS=0 switches them off from the start. Shapes are always checked.
    """
    global _checks_enabled
    previous, _checks_enabled = _checks_enabled, enabled
    return previous


@dataclasses.dataclass(frozen=True)
class Arguments:
    """One call's inputs: weighted nowhere yet, every shape agreed, per-head numbers as tensors [H].

    `cu_seqlens` is a list of Python integers, or None for a dense batch; there are `num_sequences` rows of state.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    write_weight: Tensor | None
    blend: Tensor | None
    ridge: Tensor
    gain: Tensor
    scale: Tensor
    power: int
    causal: bool
    refresh_interval: int | None
    initial_state: RecurrentState | None
    cu_seqlens: list[int] | None

    @property
    def num_sequences(self) -> int:
        return self.query.shape[0] if self.cu_seqlens is None else len(self.cu_seqlens) - 1

    @functools.cached_property
    def relative_ridge(self) -> Tensor:
        """The ridge over the squared norm b |k|^2 of the longest stored key, or over 1 where keys are shorter, [H]."""
        key, weight = self.key.detach(), self.write_weight
        if key.numel() == 0:
            return self.ridge.detach()
        squares = torch.linalg.vector_norm(key, dim=-1, dtype=torch.float32).square()
        if weight is not None:
            squares = squares * weight.detach()
        longest = squares.amax(dim=(0, 1)).to(self.ridge.dtype)
        return self.ridge.detach() / torch.where(longest <= ROUNDED_UNIT_NORM, 1.0, longest)

    def needs_float64(self) -> bool:
        """Whether this is a read on a CPU that float32 tokens cannot follow; asks for tensors' values."""
        if torch.compiler.is_compiling() or self.query.device.type != "cpu" or self.value.dtype == torch.float64:
            return False
        whole = not self.causal or (self.refresh_interval or 0) >= WHOLE_WINDOW
        return not whole and bool((self.relative_ridge < FLOAT64_BELOW).any())

    def double(self) -> Arguments:
        """The same call with tokens in float64; gradients pass."""
        names = ("query", "key", "value", "write_weight", "blend")
        given = {name: getattr(self, name) for name in names}
        return dataclasses.replace(self, **{n: tensor.double() for n, tensor in given.items() if tensor is not None})

    def tokens(self, begin: int, end: int) -> Arguments:
        """The same call for the tokens from `begin` to `end` - 1, without state or packing."""

        def cut(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[:, begin:end]

        return dataclasses.replace(
            self,
            query=self.query[:, begin:end],
            key=self.key[:, begin:end],
            value=self.value[:, begin:end],
            write_weight=cut(self.write_weight),
            blend=cut(self.blend),
            initial_state=None,
            cu_seqlens=None,
        )

    def start(self) -> RecurrentState:
        """The initial state, or the empty one."""
        if self.initial_state is not None:
            return self.initial_state
        _, _, heads, rank = self.query.shape
        empty = SufficientStatistics.empty(
            self.num_sequences, heads, rank, self.value.shape[-1], device=self.query.device
        )
        frozen = empty if self.refresh_interval is not None else None
        return RecurrentState(statistics=empty, frozen_statistics=frozen, position=empty.count)


def check_arguments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    write_weight: Tensor | None,
    *,
    ridge: Tensor | float,
    power: int,
    blend: Tensor | None,
    gain: Tensor | float,
    scale: Tensor | float,
    causal: bool,
    refresh_interval: int | None,
    initial_state: RecurrentState | None,
    cu_seqlens: Tensor | None,
) -> Arguments:
    """Check every input of the front door; each error is one sentence that says what to change."""
    for name, given in (("query", query), ("key", key), ("value", value)):
        if not isinstance(given, Tensor):
            raise ValueError(f"{name} must be a torch tensor, got {type(given).__name__}")
    if query.dim() != 4 or min(query.shape[2:]) < 1:
        raise ValueError(f"query must be [batch, time, heads, rank], got {list(query.shape)}")
    batch, time, heads, _ = query.shape
    if key.shape != query.shape:
        raise ValueError(f"key must have the shape of query, {list(query.shape)}, got {list(key.shape)}")
    if value.dim() != 4 or value.shape[:3] != query.shape[:3] or value.shape[3] < 1:
        raise ValueError(f"value must be [{batch}, {time}, {heads}, head_dim], got {list(value.shape)}")
    for name, tensor in (("key", key), ("value", value), ("write_weight", write_weight), ("blend", blend)):
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name} must be a torch tensor or None, got {type(tensor).__name__}")
        if name in ("write_weight", "blend") and tensor.shape != query.shape[:3]:
            raise ValueError(f"{name} must be [{batch}, {time}, {heads}], got {list(tensor.shape)}")
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be a floating-point tensor, got {tensor.dtype}: convert it with .to()")
        if tensor.device != query.device:
            raise ValueError(f"{name} is on {tensor.device} and query on {query.device}: move them to one device")
    if not query.is_floating_point():
        raise ValueError(f"query must be a floating-point tensor, got {query.dtype}: convert it with .to()")
    require_power(power)
    if refresh_interval is not None and not causal:
        raise ValueError("refresh_interval is for causal reading: leave it None with causal=False")
    if refresh_interval is not None and (not isinstance(refresh_interval, int) or refresh_interval < 1):
        raise ValueError(f"refresh_interval must be an integer >= 1 or None, got {refresh_interval!r}")
    arguments = Arguments(
        query=query,
        key=key,
        value=value,
        write_weight=write_weight,
        blend=blend,
        ridge=_per_head("ridge", ridge, heads, query.device),
        gain=_per_head("gain", gain, heads, query.device),
        scale=_per_head("scale", scale, heads, query.device),
        power=power,
        causal=causal,
        refresh_interval=refresh_interval,
        initial_state=initial_state,
        cu_seqlens=None if cu_seqlens is None else check_boundaries(cu_seqlens, batch, time),
    )
    if initial_state is not None:
        _check_state(initial_state, arguments)
        arguments = dataclasses.replace(arguments, initial_state=initial_state.accumulating())
    if _checks_enabled and not torch.compiler.is_compiling():
        _check_values(arguments)
    return arguments


def require_power(power: int) -> None:
    """Raises ValueError where K is no integer >= 0."""
    if isinstance(power, bool) or not isinstance(power, int) or power < 0:
        raise ValueError(f"power must be an integer >= 0, got {power!r}")


def _per_head(name: str, number: Tensor | float, heads: int, device: torch.device) -> Tensor:
    if not isinstance(number, Tensor | float | int) or isinstance(number, bool):
        raise ValueError(f"{name} must be a number or a tensor, got {number!r}")
    precise = accumulator_dtype(device)  # a Python number must not be rounded to torch's default dtype first
    tensor = number.to(device) if isinstance(number, Tensor) else torch.tensor(number, device=device, dtype=precise)
    if tensor.is_complex():
        raise ValueError(f"{name} must be real, got {tensor.dtype}")
    if tensor.shape not in ((), (1,), (heads,)):
        raise ValueError(f"{name} must be a number or a tensor of one per head [{heads}], got {list(tensor.shape)}")
    return tensor.to(precise).expand(heads)


def check_boundaries(cu_seqlens: Tensor, batch: int, time: int) -> list[int]:
    """The boundaries of packed sequences as Python integers.

    Raises:
        ValueError: they do not fit a batch [batch, time].
    """
    if not isinstance(cu_seqlens, Tensor):
        raise ValueError(f"cu_seqlens must be a 1-D integer tensor, got {type(cu_seqlens).__name__}")
    if batch != 1:
        raise ValueError(f"cu_seqlens needs a packed batch of 1 row, got {batch}: concatenate the rows along time")
    if cu_seqlens.dim() != 1 or cu_seqlens.numel() < 2 or cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"cu_seqlens must be a 1-D integer tensor of at least 2 boundaries, got {cu_seqlens!r}")
    bounds: list[int] = cu_seqlens.tolist()
    if bounds[0] != 0 or bounds[-1] != time:
        raise ValueError(f"cu_seqlens must run from 0 to {time}, the packed length, got {bounds[0]} to {bounds[-1]}")
    if any(later < earlier for earlier, later in itertools.pairwise(bounds)):
        raise ValueError(f"cu_seqlens must not decrease, got {bounds}")
    return bounds


def _check_state(state: RecurrentState, arguments: Arguments) -> None:
    check_fields(state, "initial_state")
    _, _, heads, rank = arguments.query.shape
    expected = (arguments.num_sequences, heads, arguments.value.shape[-1], rank)
    found = tuple(state.statistics.value_moment.shape)
    if found != expected:
        raise ValueError(
            f"initial_state is of another model or batch: its [sequences, heads, head_dim, rank] is {list(found)}, "
            f"this call's {list(expected)}"
        )
    if (state.frozen_statistics is None) != (arguments.refresh_interval is None):
        made, used = ("without", "with") if state.frozen_statistics is None else ("with", "without")
        raise ValueError(f"initial_state was made {made} a refresh_interval and is read {used} one: use the same")
    interval = arguments.refresh_interval
    look = _checks_enabled and not torch.compiler.is_compiling()
    if interval is not None and look and not state.is_frozen_at(interval):
        raise ValueError(f"initial_state was frozen at another refresh_interval than {interval}: use the same")
    if state.position.device != arguments.query.device:
        raise ValueError(f"initial_state is on {state.position.device}: move it to {arguments.query.device} with .to()")


class NotFiniteError(ValueError, FloatingPointError):
    """An input holds numbers that are not finite: a wrong value for the caller, a divergence for a training."""


def _check_values(arguments: Arguments) -> None:
    names = ("query", "key", "value", "write_weight", "blend", "ridge", "gain", "scale")
    given = ((name, getattr(arguments, name)) for name in names)
    tensors = {name: tensor.detach() for name, tensor in given if tensor is not None and tensor.numel() > 0}
    # A sum is finite almost only if all terms are: one cheap pass, and the exact search where it is not.
    if not math.isfinite(sum(tensor.sum(dtype=torch.float32) for tensor in tensors.values())):
        for name, tensor in tensors.items():
            _check_finite(name, tensor)
    for name in ("write_weight", "blend"):
        if name in tensors:
            low, high = (float(bound) for bound in tensors[name].aminmax())
            if low < 0 or high > 1:
                raise ValueError(f"{name} must lie in [0, 1], found values from {low:.6g} to {high:.6g}")
    _check_ridge(tensors["ridge"], arguments)


def _check_finite(name: str, tensor: Tensor) -> None:
    bad = (~tensor.isfinite()).nonzero()
    if len(bad) > 0:
        axes = ("batch", "time", "head", "channel") if tensor.dim() > 1 else ("head",)
        place = ", ".join(f"{axis} {i}" for axis, i in zip(axes, bad[0].tolist(), strict=False))
        found = float(tensor[tuple(bad[0])])
        raise NotFiniteError(f"{name} holds {found} first at {place} ({len(bad)} of {tensor.numel()} not finite)")


def _check_ridge(ridge: Tensor, arguments: Arguments) -> None:
    smallest = float(ridge.min())
    if smallest <= 0:
        raise ValueError(f"ridge must be > 0, got {smallest:.6g}")
    dtype = arguments.value.dtype
    if dtype == torch.float64:
        return
    if smallest < RIDGE_FLOOR:
        raise ValueError(
            f"ridge must be at least {RIDGE_FLOOR:g} for {dtype} inputs, got {smallest:.6g}: raise it, or pass float64 "
            "(docs/numerics.md shows what is lost below)"
        )
    relative = arguments.relative_ridge
    if bool((relative < RIDGE_FLOOR).any()):
        head = int(relative.argmin())
        squared = float(ridge[head] / relative[head])
        raise ValueError(
            f"ridge must be at least {RIDGE_FLOOR:g} times the squared norm of the keys for {dtype} inputs, got "
            f"{float(ridge[head]):.6g} and keys of norm up to {math.sqrt(squared):.4g} in head {head}: "
            f"normalise the keys, raise the ridge to {RIDGE_FLOOR * squared:.2g}, or pass float64 (docs/numerics.md)"
        )
