"""A cache as named tensors and back, bit for bit; of a symmetric matrix the upper triangle alone is kept."""

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


def encode(cache: EchoCache) -> dict[str, Tensor]:
    """The tensors of every compact state by name, e.g. `layers.1.recurrent.statistics.gram_upper`."""
    found: dict[str, Tensor] = {}
    for index, layer in enumerate(cache.layers):
        for name, tensor in {} if layer.state is None else layer.state.compact().tensors().items():
            if _is_gram(name):
                found[f"layers.{index}.{name}{UPPER}"] = to_upper(tensor)
            else:
                found[f"layers.{index}.{name}"] = tensor
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
    tensor = tensors.pop(name + UPPER if _is_gram(name) else name, None)
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
