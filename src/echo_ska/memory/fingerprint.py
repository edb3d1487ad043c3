"""Which model a state belongs to: one hash of everything that its function depends on."""

from __future__ import annotations

import hashlib
import inspect
import json
import weakref
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

_kept: weakref.WeakKeyDictionary[nn.Module, _Kept] = weakref.WeakKeyDictionary()


class _Kept:
    """A fingerprint, and how the tensors stood when it was computed."""

    def __init__(self, tensors: dict[str, Tensor], fields: dict[str, Any], fingerprint: str) -> None:
        self.tensors = {name: weakref.ref(tensor) for name, tensor in tensors.items()}
        self.marks, self.fields, self.fingerprint = _marks(tensors), fields, fingerprint

    def holds_for(self, tensors: dict[str, Tensor], fields: dict[str, Any]) -> bool:
        return (
            self.fields == fields
            and self.marks == _marks(tensors)
            and all(self.tensors[name]() is tensor for name, tensor in tensors.items())
        )


def model_fingerprint(model: nn.Module) -> str:
    """SHA-256 over the configuration and every parameter and buffer: equal for models that compute the same.

    Of the configuration, what changes the function; of a tensor, name, dtype, shape and bytes. It does not depend on
    the device. It is computed once a model object (about a second a gigabyte) and again after a parameter was changed.
    What torch does not count as a change, writing through `parameter.data` or a NumPy view, is not noticed.

    Args:
        model: an `EchoForCausalLM` or `EchoModel`.

    Returns:
        64 hexadecimal digits.

    Raises:
        ValueError: the model has no numbers (it is on the meta device), or is no Echo model.
    """
    tensors, fields = _tensors(model), function_fields(model)
    kept = _kept.get(model)
    if kept is not None and kept.holds_for(tensors, fields):
        return kept.fingerprint
    hashed = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        if tensor.is_meta:
            raise ValueError(f"the model has no numbers yet: {name} is on the meta device")
        hashed.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        if tensor.numel():
            hashed.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    fingerprint = hashed.hexdigest()
    if not any(tensor.is_inference() for tensor in tensors.values()):  # torch does not count their changes
        _kept[model] = _Kept(tensors, fields, fingerprint)
    return fingerprint


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


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())


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
