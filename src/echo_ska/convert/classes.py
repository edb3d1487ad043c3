"""Converted decoders are classes of their own, so that nothing takes them for what they were.

`ska-llama` is a Llama in which some layers are SKA: a `SkaLlamaForCausalLM` with a `SkaLlamaConfig`, whose field
`echo_ska_replaced` says which. Importing `echo_ska.convert` registers the classes with Hugging Face's Auto classes;
without it these say that they do not know the type, instead of building softmax attention at random.
"""

from __future__ import annotations

import copy
import functools
from typing import Any, cast

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.initialization import guard_torch_init_functions

from echo_ska.convert.attention import ReplacedAttention
from echo_ska.convert.carry import build_mixer
from echo_ska.convert.hosts import CONVERTED, HOSTS, decoder_layers, head_weights
from echo_ska.nn.mixer import KEPT_IN_FLOAT32

FIELD = "echo_ska_replaced"
"""The field of a configuration that says what was replaced: a list of `layers`, `rank`, `init` and `settings`."""


@functools.cache
def converted_class(host: str) -> type[PreTrainedModel]:
    """The class of a host's converted models.

    Args:
        host: a name in `HOSTS`.
    """
    original: Any = getattr(transformers, HOSTS[host][0])
    names = {"__module__": __name__}
    config: Any = type(f"Ska{original.config_class.__name__}", (original.config_class,), names)
    config.model_type = CONVERTED + host
    config.__doc__ = f"`{original.config_class.__name__}` of a model whose attention is SKA in some layers."

    def start(model: Any, config: PreTrainedConfig, *arguments: Any, **options: Any) -> None:
        original.__init__(model, config, *arguments, **options)
        for part in replaced_parts(config):
            _put_in(model, part)
        keep_in_float32(model)
        _refuse_attention_weights(model)

    def initialize_weights(model: Any) -> None:
        original.initialize_weights(model)  # which does not know these layers, where a file lacks their parameters
        with torch.no_grad(), guard_torch_init_functions():
            for module in model.modules():
                if isinstance(module, ReplacedAttention):
                    module.mixer.apply(_reset)

    own = {"__init__": start, "initialize_weights": initialize_weights, "config_class": config}
    model: Any = type(f"Ska{original.__name__}", (original,), names | own)
    model.__doc__ = f"`{original.__name__}` with SKA in the place of attention in some layers."
    for each in (config, model):
        globals()[each.__name__] = each  # where pickle looks for it
    AutoConfig.register(config.model_type, config)
    AutoModelForCausalLM.register(config, model)
    return cast(type[PreTrainedModel], model)


def replaced_parts(config: PreTrainedConfig) -> list[dict[str, Any]]:
    """What a configuration's field says was replaced; nothing where it has none.

    Raises:
        ValueError: the field does not have the form that `make_converted` gives it.
    """
    parts = getattr(config, FIELD, None)
    if parts is None:
        return []
    kinds = {"layers": list, "rank": int, "init": str, "settings": dict}
    if not isinstance(parts, list) or any(
        not isinstance(part, dict)
        or part.keys() != kinds.keys()
        or any(not isinstance(part[name], kind) for name, kind in kinds.items())
        for part in parts
    ):
        raise ValueError(f"{FIELD} in the configuration must be a list of layers, rank, init and settings: {parts!r}")
    return parts


def make_converted(model: PreTrainedModel, part: dict[str, Any]) -> None:
    """Let a model in which `part` was replaced say so: by its class, its configuration's, and the field.

    Args:
        model: changed in place.
        part: `layers`, `rank`, `init` and `settings` of what was replaced.
    """
    old: Any = model.config
    config = copy.deepcopy(old)  # which another model may share
    setattr(config, FIELD, [*(getattr(config, FIELD, None) or ()), part])
    model.__class__ = converted_class(config.model_type.removeprefix(CONVERTED))
    config.__class__ = model.config_class
    for module in model.modules():
        if getattr(module, "config", None) is old:
            module.config = config
    keep_in_float32(model)
    _refuse_attention_weights(model)


def keep_in_float32(model: PreTrainedModel) -> None:
    """Of what steers exponentials and solves, what this model has stays in float32 when it is loaded."""
    own = {name.rpartition(".")[2] for name, _ in model.named_parameters() if is_kept_in_float32(name)}
    cast(Any, model)._keep_in_fp32_modules_strict = own


def is_kept_in_float32(name: str) -> bool:
    """Whether a converted model's parameter of that name stays in float32 where the model is in half precision."""
    return ".mixer." in name and name.rpartition(".")[2] in KEPT_IN_FLOAT32


def _refuse_attention_weights(model: PreTrainedModel) -> None:
    """Hugging Face would return the weights of the layers that have some, as if those were all.

    The host's decoder refuses, since it may also be called by itself.
    """
    if _check_wanted not in model.base_model._forward_pre_hooks.values():
        model.base_model.register_forward_pre_hook(_check_wanted, with_kwargs=True)


def _check_wanted(decoder: nn.Module, arguments: tuple, settings: dict[str, Any]) -> None:
    if settings.get("output_attentions", getattr(decoder.config, "output_attentions", False)):
        raise ValueError("an SKA layer in the place of attention has no attention weights: leave output_attentions out")


def _reset(module: nn.Module) -> None:
    if callable(reset := getattr(module, "reset_parameters", None)):
        reset()


def _put_in(model: nn.Module, part: dict[str, Any]) -> None:
    blocks, name = decoder_layers(model)
    for index in part["layers"]:
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(blocks):
            raise ValueError(
                f"{FIELD} in the configuration names layer {index!r}, but there are 0 to {len(blocks) - 1}"
            )
        attention = getattr(blocks[index], name)
        if isinstance(attention, ReplacedAttention):
            raise ValueError(f"{FIELD} in the configuration names layer {index} twice")
        with torch.no_grad():
            weights = head_weights(attention)
        try:
            mixer = build_mixer(weights, part["rank"], part["settings"])
        except TypeError as error:  # a setting of no such name
            raise ValueError(f"{FIELD} in the configuration has settings that are none: {error}") from None
        setattr(blocks[index], name, ReplacedAttention(mixer, index, weights.dropout).train(attention.training))
