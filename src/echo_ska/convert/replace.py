"""Replacing the softmax attention of a Hugging Face decoder by SKA, in place."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterable
from typing import Any, Literal, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from echo_ska.convert.attention import ReplacedAttention
from echo_ska.convert.carry import build_mixer, carry_over
from echo_ska.convert.classes import is_kept_in_float32, make_converted
from echo_ska.convert.hosts import cache_bytes_per_token, decoder_layers, head_weights
from echo_ska.nn import SpectralKoopmanAttention

CARRIED: dict[str, Any] = {"key_delay": 0}
"""Settings of SKA that differ from its own defaults where a trained model's projections are carried over.

Its keys stand where its values do: what the answer follows has been moved there by the layers before."""


OF_THE_HOST = {"hidden_size", "num_heads", "rank", "head_dim"}
"""What an SKA layer is told by the attention that it replaces, and by `rank`."""


@dataclasses.dataclass(frozen=True)
class Replacement:
    """What `replace_attention` did.

    Attributes:
        layers: indices of the layers that are SKA now.
        rank: width of their keys and queries.
        carried: parameters started from the attention's.
        new: parameters that the attention had no counterpart of.
        removed: parameters that the replaced layers had.
        state_bytes: of one sequence's states in the replaced layers, whatever the length.
        kv_bytes_per_token: what the replaced layers kept for each token.
        kept_bytes_per_token: what the layers that stay keep for each token.
        kept_state_bytes: of one sequence's states in layers that were SKA before.
    """

    layers: tuple[int, ...]
    rank: int
    carried: int
    new: int
    removed: int
    state_bytes: int
    kv_bytes_per_token: int
    kept_bytes_per_token: int
    kept_state_bytes: int

    def cache_bytes(self, tokens: int) -> tuple[int, int]:
        """Bytes of one sequence's cache after so many tokens, all layers together: before, and now."""
        kept = tokens * self.kept_bytes_per_token + self.kept_state_bytes
        return kept + tokens * self.kv_bytes_per_token, kept + self.state_bytes

    @property
    def break_even(self) -> int:
        """The fewest tokens from which on the states take fewer bytes than the keys and values did."""
        return self.state_bytes // self.kv_bytes_per_token + 1


def replace_attention(
    model: nn.Module,
    layers: Iterable[int] | str | None = None,
    *,
    init: Literal["carry", "fresh"] = "carry",
    rank: int | None = None,
    **settings: Any,
) -> Replacement:
    """Put SKA in the place of softmax attention, in place, in a Llama, Mistral, Qwen2, Qwen3 or GPT-2 of Hugging Face.

    Carried over: values and output projections as they are, biases included (grouped-query heads are repeated, as the
    model itself repeats them), queries and keys by `low_rank_forms`; the short convolutions start as the identity. The
    write gate, the ridge, the blend and the norm of what is read have no counterpart and start as SKA's do. SKA has no
    positions: rotary embeddings are left out, so that a query and a key meet as they would at distance 0. Afterwards
    the model computes another function, which `distil` brings near the old one.

    `generate` works as before with the same `DynamicCache`, which holds a state of constant size for each replaced
    layer. So does `save_pretrained`; what it wrote is loaded by `AutoModelForCausalLM.from_pretrained` where this
    package is imported, and by `load_converted`, which accepts nothing missing.

    Args:
        model: changed in place; a `LlamaForCausalLM` becomes a `SkaLlamaForCausalLM` of type ska-llama, and so do the
            others; its configuration gets the field `echo_ska_replaced`.
        layers: indices from 0; "all" or None; or "every 2nd", "every 3rd", ...: layers 1, 3, 5, ...
        init: "carry", or "fresh" for layers that start as untrained SKA does.
        rank: r; None takes the head's width, at which nothing of a query-key product is lost.
        settings: further ones of `SpectralKoopmanAttention`. With "carry", key_delay is 0 unless given.

    Returns:
        What was replaced, and what is kept for it.

    Raises:
        ValueError: a model that is not supported, layers that do not exist or are SKA already, or settings that do not
            fit. The model is then as it was.
    """
    if init not in ("carry", "fresh"):
        raise ValueError(f'init must be "carry" or "fresh", got {init!r}')
    _check_settings(rank, settings)
    blocks, name = decoder_layers(model)
    if getattr(model, "is_quantized", False) or getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError("the weights are quantised or have adapters: replace attention before that")
    chosen = chosen_layers(layers, len(blocks))
    if again := [index for index in chosen if isinstance(getattr(blocks[index], name), ReplacedAttention)]:
        raise ValueError(f"layer {again[0]} is SKA already: choose among the others")
    settings = {**(CARRIED if init == "carry" else {}), **settings}
    carried = total = removed = state_bytes = kv_bytes = 0
    replacements = []
    for index in chosen:
        attention = getattr(blocks[index], name)
        weights = head_weights(attention)
        width = weights.query.shape[1] if rank is None else rank
        mixer = build_mixer(weights, width, settings)
        if init == "carry":
            carried += carry_over(weights, mixer)
        else:
            with torch.no_grad():  # as in Echo: 2 N branches add up to the residual stream
                mixer.o_proj.weight.mul_((2 * len(blocks)) ** -0.5)
        total += sum(parameter.numel() for parameter in mixer.parameters())
        removed += sum(parameter.numel() for parameter in attention.parameters())
        kv_bytes += cache_bytes_per_token(attention)
        state_bytes += mixer.state_bytes(1)
        replacements.append(ReplacedAttention(mixer, index, weights.dropout).train(attention.training))
    for index, replacement in zip(chosen, replacements, strict=True):  # only now: what raises leaves the model alone
        setattr(blocks[index], name, replacement)
    make_converted(
        cast(PreTrainedModel, model), {"layers": list(chosen), "rank": width, "init": init, "settings": settings}
    )
    kept = [getattr(block, name) for index, block in enumerate(blocks) if index not in chosen]
    return Replacement(
        layers=chosen,
        rank=width,
        carried=carried,
        new=total - carried,
        removed=removed,
        state_bytes=state_bytes,
        kv_bytes_per_token=kv_bytes,
        kept_bytes_per_token=sum(cache_bytes_per_token(a) for a in kept if not isinstance(a, ReplacedAttention)),
        kept_state_bytes=sum(a.mixer.state_bytes(1) for a in kept if isinstance(a, ReplacedAttention)),
    )


def cast_converted(model: PreTrainedModel, dtype: torch.dtype, replacement: Replacement) -> Replacement:
    """Cast a converted model to the dtype it is kept in, but for what steers exponentials and solves.

    Args:
        model: changed in place, as `from_pretrained(dtype=dtype)` would load it.
        dtype: a floating one.
        replacement: what was replaced in it.

    Returns:
        The same replacement, with the bytes that caches have in this dtype.
    """
    before = model.dtype.itemsize
    for name, parameter in model.named_parameters():
        if not is_kept_in_float32(name):
            parameter.data = parameter.data.to(dtype)
    states = {index: layer.mixer.state_bytes(1) for index, layer in replaced_attentions(model).items()}
    own = sum(states[index] for index in replacement.layers)
    return dataclasses.replace(
        replacement,
        state_bytes=own,
        kv_bytes_per_token=replacement.kv_bytes_per_token * dtype.itemsize // before,
        kept_bytes_per_token=replacement.kept_bytes_per_token * dtype.itemsize // before,
        kept_state_bytes=sum(states.values()) - own,
    )


def _check_settings(rank: int | None, settings: dict[str, Any]) -> None:
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise ValueError(f"rank must be a whole number of at least 1, or None, got {rank!r}")
    known = inspect.signature(SpectralKoopmanAttention).parameters.keys() - OF_THE_HOST
    if unknown := sorted(settings.keys() - known):
        what = "follows from the model" if unknown[0] in OF_THE_HOST else "is no setting of SpectralKoopmanAttention"
        raise ValueError(f"{unknown[0]} {what}: choose from {', '.join(sorted(known))}")


def chosen_layers(layers: Iterable[int] | str | None, count: int) -> tuple[int, ...]:
    """Indices of layers, ascending; see `replace_attention`.

    Raises:
        ValueError: none, one that does not exist, or a text that says nothing of the kind.
    """
    if layers is None or layers == "all":
        return tuple(range(count))
    if isinstance(layers, str):
        found = re.fullmatch(r"every (\d+)(?:st|nd|rd|th)?", layers.strip())
        if found:
            step = int(found[1])
            layers = range(step - 1, count, step) if step else ()
        elif re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", layers):
            layers = [int(part) for part in layers.split(",")]
        else:
            raise ValueError(f'layers must be "all", "every 2nd" or indices as in 1,3, got {layers!r}')
    given = list(layers) if isinstance(layers, Iterable) else []
    # Before `set`, in which True is 1.
    if not given or any(type(index) is not int or not 0 <= index < count for index in given):
        shown = given if isinstance(layers, Iterable) else layers
        raise ValueError(f"layers must name at least one of 0 to {count - 1}, as in [0, 2], got {shown!r}")
    return tuple(sorted(set(given)))


def replaced_attentions(model: nn.Module) -> dict[int, ReplacedAttention]:
    """The SKA layers that stand in the place of attention, by their index."""
    return {module.layer_idx: module for module in model.modules() if isinstance(module, ReplacedAttention)}
