"""Which model a state belongs to: one hash of everything that its function depends on."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import enum
import hashlib
import inspect
import json
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from echo_ska.models import EchoConfig

# Fields that no function depends on: permissions, shorthands of `layer_types`, what tools may use, and what the
# parameters' names and shapes say by themselves.
_NOT_OF_THE_FUNCTION = (
    "self",
    "kwargs",
    "ska_at_ends",
    "ska_layers",
    "attention_layers",
    "intermediate_size",
    "gate_dropout",
    "mixer_dropout",
    "max_position_embeddings",
    "tie_word_embeddings",
)

# Of a layer with adapters (PEFT's names): which of them take part, and how.
_OF_ADAPTERS = ("active_adapters", "disable_adapters", "merged_adapters", "scaling", "use_dora")

_BLOCK = 32
"""Words of eight bytes that are summed before sums are weighted by their places."""

_kept: weakref.WeakKeyDictionary[nn.Module, _Kept] = weakref.WeakKeyDictionary()
_unchanged: contextvars.ContextVar[tuple[nn.Module, str] | None] = contextvars.ContextVar("unchanged", default=None)


@dataclasses.dataclass
class _Function:
    """What a model's function depends on.

    Attributes:
        fields: see `function_fields`.
        tensors: parameters and buffers by name; in place of a tensor subclass, the plain tensors it is made of.
        packed: further tensors of the state dict (packed weights, extra state), most of them made anew at each look.
        others: what neither a field nor a tensor says, as JSON; empty for a plain model.
    """

    fields: dict[str, Any]
    tensors: dict[str, Tensor]
    packed: dict[str, Tensor]
    others: dict[str, Any]

    @property
    def all_tensors(self) -> dict[str, Tensor]:
        return self.tensors | self.packed


class _Kept:
    """A fingerprint, and how the model stood when it was computed."""

    def __init__(self, function: _Function, fingerprint: str) -> None:
        self.tensors = {name: weakref.ref(tensor) for name, tensor in function.tensors.items()}
        self.marks, self.checks = _marks(function.tensors), _checks(function.all_tensors)
        self.fields, self.others, self.fingerprint = function.fields, function.others, fingerprint

    def holds_for(self, function: _Function) -> bool:
        return (
            self.fields == function.fields
            and self.others == function.others
            and self.marks == _marks(function.tensors)
            and all(self.tensors[name]() is tensor for name, tensor in function.tensors.items())
            and self.checks == _checks(function.all_tensors)
        )


def model_fingerprint(model: nn.Module) -> str:
    """SHA-256 over the configuration and every parameter and buffer: equal for models that compute the same.

    Of the configuration, what changes the function; of a tensor, name, dtype, shape and bytes; a tensor subclass
    (quantised weights) is taken apart. Packed weights and extra state of the state dict are hashed too, and of layers
    with adapters which of them are active, merged or disabled, and their scaling. It does not depend on the device.

    It is computed once a model object (about a second a gigabyte) and again after a change. Where torch counts no
    change (writing through `parameter.data`, as PEFT merges, or through a NumPy view), sums over all bytes tell, which
    are taken at every call (less than a second a gigabyte on one thread). Words of eight bytes that only change places
    within 256 bytes, written in such a way, are not noticed.

    Args:
        model: an `EchoForCausalLM` or `EchoModel`.

    Returns:
        64 hexadecimal digits.

    Raises:
        ValueError: the model has no numbers (it is on the meta device), is no Echo model, or holds something whose
            bytes cannot be had.
    """
    unchanged = _unchanged.get()
    if unchanged is not None and unchanged[0] is model:
        return unchanged[1]
    function = _function(model)
    kept = _kept.get(model)
    if kept is not None and kept.holds_for(function):
        return kept.fingerprint
    hashed = hashlib.sha256(json.dumps(function.fields, sort_keys=True).encode())
    tensors = function.all_tensors
    for name in sorted(tensors):
        tensor = tensors[name]
        hashed.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        if tensor.numel():
            hashed.update(_bytes(tensor, name).cpu().numpy().data)
    if function.others:
        hashed.update(json.dumps(function.others, sort_keys=True).encode())
    fingerprint = hashed.hexdigest()
    if not any(tensor.is_inference() for tensor in function.tensors.values()):  # torch does not count their changes
        _kept[model] = _Kept(function, fingerprint)
    return fingerprint


@contextlib.contextmanager
def as_unchanged(model: nn.Module, fingerprint: str) -> Iterator[None]:
    """Within it, in this thread, `model_fingerprint(model)` is `fingerprint`, without a look at the model.

    For who alone holds the model and does not change it: a server asks several times a request.
    """
    before = _unchanged.set((model, fingerprint))
    try:
        yield
    finally:
        _unchanged.reset(before)


def function_fields(model: nn.Module) -> dict[str, Any]:
    """What a model's function depends on beside its numbers, as JSON: configuration fields, and the parameters' dtypes.

    Raises:
        ValueError: the model has no `EchoConfig`.
    """
    config = getattr(model, "config", None)
    if not isinstance(config, EchoConfig):
        raise ValueError(f"a context belongs to an Echo model, got {type(model).__name__}")
    dtypes = {str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()}
    fields: dict[str, Any] = {"dtype": " and ".join(sorted(dtypes))}
    for name, parameter in inspect.signature(EchoConfig.__init__).parameters.items():
        if name in _NOT_OF_THE_FUNCTION or name in config.unread_fields:
            continue
        value = getattr(config, name)
        fields[name] = float(value) if isinstance(parameter.default, float) else value
    return json.loads(json.dumps(fields))


def configuration_of(fields: dict[str, Any]) -> EchoConfig:
    """A configuration whose states are those of the model that `function_fields` described."""
    return EchoConfig(**{name: value for name, value in fields.items() if name != "dtype"}, ska_at_ends=True)


def require_same_model(model: nn.Module, fingerprint: str, fields: dict[str, Any]) -> None:
    """Raise a ValueError, saying what differs, unless `model` has that fingerprint."""
    found = model_fingerprint(model)
    if found == fingerprint:
        return
    here = function_fields(model)
    different = [
        f"{name} {fields.get(name)} there, {here.get(name)} here"
        for name in sorted(fields.keys() | here.keys())
        if fields.get(name) != here.get(name)
    ]
    if not different:
        different = [
            f"the same configuration, other parameters (fingerprint {fingerprint[:12]} there, {found[:12]} here)"
        ]
    raise ValueError(
        f"this context was read by another model: {'; '.join(different)}: use that model, or read the tokens anew"
    )


def _function(model: nn.Module) -> _Function:
    """What a model's function depends on, as it is now."""
    fields = function_fields(model)
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    tensors: dict[str, Tensor] = {}
    packed: dict[str, Tensor] = {}
    others = {name: told for name, tensor in own.items() if (told := _taken_apart(tensor, name, tensors)) is not None}
    seen = {id(tensor) for tensor in own.values()}
    for name, value in model.state_dict(keep_vars=True).items():
        if name not in own and id(value) not in seen:  # tied weights have several names
            told = _taken_apart(value, name, packed)
            if told is not None:
                others[name] = told
    adapters = {name: told for name, module in model.named_modules() if (told := _adapters(module))}
    return _Function(fields, tensors, packed, others | ({"adapters": adapters} if adapters else {}))


def _adapters(module: nn.Module) -> dict[str, Any]:
    """Which adapters of a layer take part in its function; empty for a layer that can have none."""
    if not isinstance(getattr(module, "disable_adapters", None), bool):  # of a whole model it is a method
        return {}
    found = {name: getattr(module, name, None) for name in _OF_ADAPTERS}
    return {name: _taken_apart(value, name, {}) for name, value in found.items() if value is not None}


def _taken_apart(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Put the plain tensors that a value is made of into `tensors`, and return what else it is made of, as JSON.

    None for a plain tensor, which says all by itself.

    Raises:
        ValueError: a tensor without numbers, or an object of a kind that has no spelling.
    """
    if isinstance(value, Tensor):
        return _tensor_taken_apart(value, name, tensors)
    if isinstance(value, enum.Enum):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.dtype | torch.device | torch.layout):
        return str(value)
    if isinstance(value, bytes | bytearray):
        return hashlib.sha256(value).hexdigest()
    if isinstance(value, Mapping):
        return {str(key): _taken_apart(part, f"{name}.{key}", tensors) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_taken_apart(part, f"{name}.{place}", tensors) for place, part in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {"class": type(value).__qualname__} | _taken_apart(parts, name, tensors)
    raise ValueError(
        f"the model has no fingerprint: {name} holds a {type(value).__qualname__}, which cannot be told from another"
    )


def _tensor_taken_apart(tensor: Tensor, name: str, tensors: dict[str, Tensor]) -> Any:
    if tensor.is_meta:
        raise ValueError(f"the model has no numbers yet: {name} is on the meta device")
    if hasattr(tensor, "__tensor_flatten__"):
        inner, more = tensor.__tensor_flatten__()
        parts = {part: getattr(tensor, part) for part in inner}
        return {
            "class": type(tensor).__qualname__,
            "shape": list(tensor.shape),
            "parts": {part: _taken_apart(held, f"{name}.{part}", tensors) for part, held in parts.items()},
            "more": _taken_apart(more, f"{name}.more", tensors),
        }
    if tensor.is_quantized:  # torch.ao's own; its scales are no tensors where there is one for all
        tensors[name] = tensor.int_repr()
        if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
            return [str(tensor.dtype), tensor.q_scale(), tensor.q_zero_point()]
        tensors[f"{name}.scales"] = tensor.q_per_channel_scales()
        tensors[f"{name}.zero_points"] = tensor.q_per_channel_zero_points()
        return [str(tensor.dtype), str(tensor.qscheme()), tensor.q_per_channel_axis()]
    tensors[name] = tensor
    return None


def _bytes(tensor: Tensor, name: str) -> Tensor:
    """A tensor's bytes in their order, uint8 [bytes], where it lives; its own memory if it is contiguous."""
    try:
        return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    except (RuntimeError, TypeError) as error:  # NotImplementedError is a RuntimeError
        raise ValueError(
            f"the model has no fingerprint: the bytes of {name}, a {type(tensor).__qualname__}, cannot be had"
        ) from error


def _marks(tensors: dict[str, Tensor]) -> dict[str, tuple[Any, ...]]:
    return {
        name: (
            None if tensor.is_inference() else tensor._version,
            tensor.data_ptr(),
            tensor.dtype,
            tensor.shape,
            tensor.device,
        )
        for name, tensor in tensors.items()
    }


def _checks(tensors: dict[str, Tensor]) -> dict[str, int]:
    """For each tensor a sum over its bytes that a change of them changes, unless changes cancel.

    The bytes are taken as 64-bit integers; sums of blocks are weighted by their places. The sums wrap around, so they
    are exact and in whatever order they are taken.
    """
    sums = {name: _check(_bytes(tensor, name)) for name, tensor in tensors.items() if tensor.numel()}
    by_device: dict[torch.device, list[str]] = {}
    for name, figure in sums.items():
        by_device.setdefault(figure.device, []).append(name)
    return {  # one transfer a device
        name: figure
        for names in by_device.values()
        for name, figure in zip(names, torch.stack([sums[name] for name in names]).tolist(), strict=True)
    }


def _check(data: Tensor) -> Tensor:
    """The sum of `_checks` of bytes [B], int64 []."""
    if data.data_ptr() % 8 or data.storage_offset() % 8:
        data = data.clone()
    words = data[: len(data) // 8 * 8].view(torch.int64)
    blocks = words[: len(words) // _BLOCK * _BLOCK].view(-1, _BLOCK)
    rest = data[blocks.numel() * 8 :]
    sums = torch.cat([blocks.sum(dim=-1), rest.long()])
    return (sums * torch.arange(1, len(sums) + 1, device=sums.device)).sum()
