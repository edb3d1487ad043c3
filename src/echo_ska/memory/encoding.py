"""A cache as named tensors and back, bit for bit, in fewer bytes than it takes in memory.

Of a symmetric matrix the upper triangle alone is kept; float64 numbers that float32 holds as well are kept as float32,
and of others only the leading bytes where all of them end in zero bytes: six of a sum (`shorten` sees to that). All of
it is lossless.
"""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import torch
from torch import Tensor

from echo_ska.algebra import TensorRecord
from echo_ska.models import EchoCache, EchoConfig
from echo_ska.nn.mixer import MixerState
from echo_ska.nn.registry import MIXERS

State = TypeVar("State", bound=TensorRecord)

GRAM = "gram"
"""Field of `SufficientStatistics`, the one symmetric matrix of any state."""
UPPER = "_upper"
FLOAT32 = "_float32"
BYTES = "_bytes"
"""Behind the name of a tensor [..., n] uint8 that holds the n leading bytes of float64 numbers, the lowest first."""

SUM_BITS = 48
"""Of the 64 of a float64 sum that a context keeps."""


def own_copy(cache: EchoCache, config: EchoConfig, device: torch.device | str | None = None) -> EchoCache:
    """A cache with copies of the compact states, outside of autograd and of inference mode; on `device` if given."""
    copied = EchoCache(config)
    with torch.inference_mode(False), torch.no_grad():
        for layer, old in zip(copied.layers, cache.layers, strict=True):
            if old.state is not None:
                # Contiguous, as loaded ones are: other strides can change the last bit of what is computed.
                state = old.state.compact().map(_contiguous_copy)
                layer.store(state if device is None else state.to(device), old.tokens)
    return copied


def make_symmetric(cache: EchoCache) -> None:
    """Copy the upper triangle of every Gram matrix into the lower one, in place.

    Matrix products may round the two differently, by one unit in the last place of float64. Once they are equal, the
    upper triangle is the whole matrix.
    """
    for layer in cache.layers:
        for name, tensor in {} if layer.state is None else layer.state.tensors().items():
            if _is_gram(name):
                tensor.copy_(from_upper(to_upper(tensor)))


def shorten(cache: EchoCache) -> None:
    """Round every float64 tensor of the states to 36 bits behind the binary point (half to even), in place.

    The relative change of a number is at most 2^-37 = 7e-12, where what is summed are float32 numbers with errors of
    6e-8: far below anything the sums say, and far above what float32 sums would lose (docs/numerics.md).
    """
    for layer in cache.layers:
        for tensor in {} if layer.state is None else layer.state.tensors().values():
            if tensor.dtype is torch.float64:
                tensor.copy_(torch.where(tensor.isfinite(), _rounded(tensor), tensor))


def encode(cache: EchoCache) -> dict[str, Tensor]:
    """The tensors of every compact state by name, e.g. `layers.1.recurrent.statistics.gram_upper`."""
    found: dict[str, Tensor] = {}
    for index, layer in enumerate(cache.layers):
        for name, tensor in {} if layer.state is None else layer.state.compact().tensors().items():
            name = f"layers.{index}.{name}"
            if _is_gram(name):
                name, tensor = name + UPPER, to_upper(tensor)
            if tensor.dtype is torch.float64:
                single = tensor.float()
                exact = torch.equal(single.double(), tensor)
                name, tensor = (name + FLOAT32, single) if exact else (name + BYTES, to_bytes(tensor))
            found[name] = tensor
    return found


def decode(config: EchoConfig, tensors: dict[str, Tensor], tokens: int) -> EchoCache:
    """The cache of one sequence that `encode` was given.

    Args:
        config: of the model whose states they are.
        tensors: what `encode` returned.
        tokens: that were read; with none there are no states.

    Raises:
        ValueError: tensors are missing, too many, or of another shape.
    """
    cache, left = EchoCache(config), dict(tensors)
    if tokens:
        for index, (layer, kind) in enumerate(zip(cache.layers, config.layer_types, strict=True)):
            layer.store(_filled(_template(kind, config), left, f"layers.{index}."), tokens)
    if left:
        raise ValueError(f"it holds tensors that its model has no place for: {', '.join(sorted(left)[:3])}")
    return cache


def to_upper(matrix: Tensor) -> Tensor:
    """[..., r, r] -> [..., r (r + 1) / 2]: rows of the upper triangle, one after the other."""
    rows, columns = torch.triu_indices(*matrix.shape[-2:], device=matrix.device)
    return matrix[..., rows, columns]


def from_upper(upper: Tensor) -> Tensor:
    """The symmetric matrix [..., r, r] of an upper triangle."""
    rank = int((8 * upper.shape[-1] + 1) ** 0.5) // 2
    rows, columns = torch.triu_indices(rank, rank, device=upper.device)
    matrix = upper.new_empty(*upper.shape[:-1], rank, rank)
    matrix[..., rows, columns] = upper
    matrix[..., columns, rows] = upper
    return matrix


def to_bytes(tensor: Tensor) -> Tensor:
    """[...] float64 -> [..., n] uint8, without the last bytes that are zero in all of the numbers; n is 1 to 8."""
    found = (tensor.view(torch.int64)[..., None] >> _shifts(8, tensor.device)) & 255
    used = found.flatten(0, -2).any(dim=0).tolist()
    return found[..., used.index(True) if True in used else 7 :].to(torch.uint8)


def from_bytes(leading: Tensor) -> Tensor:
    """The float64 numbers [...] that `to_bytes` was given."""
    return (leading.to(torch.int64) << _shifts(leading.shape[-1], leading.device)).sum(dim=-1).view(torch.float64)


def _shifts(count: int, device: torch.device) -> Tensor:
    return torch.arange(64 - 8 * count, 64, 8, device=device)


def _rounded(tensor: Tensor) -> Tensor:
    bits, cut = tensor.view(torch.int64), 64 - SUM_BITS
    even = (bits >> cut) & 1
    return ((bits + ((1 << (cut - 1)) - 1) + even) & -(1 << cut)).view(torch.float64)


def _contiguous_copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _is_gram(name: str) -> bool:
    return name.rpartition(".")[2] == GRAM


def _template(kind: str, config: EchoConfig) -> MixerState:
    """An empty state of one sequence, shapes alone."""
    with torch.device("meta"):
        return MIXERS[kind](config).init_state(1)


def _filled(template: State, tensors: dict[str, Tensor], prefix: str) -> State:
    """`template` with its tensors taken out of `tensors`."""
    taken: dict[str, Tensor | TensorRecord] = {}
    for field in dataclasses.fields(template):
        value = getattr(template, field.name)
        if isinstance(value, TensorRecord):
            taken[field.name] = _filled(value, tensors, f"{prefix}{field.name}.")
        elif value is not None:
            taken[field.name] = _take(value, tensors, prefix + field.name)
    return dataclasses.replace(template, **taken)


def _take(expected: Tensor, tensors: dict[str, Tensor], name: str) -> Tensor:
    stored = name + UPPER if _is_gram(name) else name
    tensor = tensors.pop(stored, None)
    if tensor is None and (single := tensors.pop(stored + FLOAT32, None)) is not None:
        tensor = single.double()
    if tensor is None and (leading := tensors.pop(stored + BYTES, None)) is not None:
        if leading.dtype is not torch.uint8 or not 1 <= leading.shape[-1] <= 8:
            raise ValueError(
                f"its {stored + BYTES} is {list(leading.shape)} {leading.dtype}, not 1 to 8 bytes a number"
            )
        tensor = from_bytes(leading)
    if tensor is not None and _is_gram(name):
        tensor = from_upper(tensor)
    # A dimension that is 0 before the first token grows with every one.
    if (
        tensor is None
        or tensor.dim() != expected.dim()
        or any(wanted not in (0, given) for wanted, given in zip(expected.shape, tensor.shape, strict=True))
    ):
        raise ValueError(f"its {name} is {None if tensor is None else list(tensor.shape)}, not {list(expected.shape)}")
    return tensor
