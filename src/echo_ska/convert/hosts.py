"""Where the attention layers of Hugging Face's decoders stand, and what their weights are, in one form for all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# By `model_type`: the class, the path to its decoder layers, and the attention's name in one of them.
HOSTS = {
    "llama": ("LlamaForCausalLM", "model.layers", "self_attn"),
    "mistral": ("MistralForCausalLM", "model.layers", "self_attn"),
    "qwen2": ("Qwen2ForCausalLM", "model.layers", "self_attn"),
    "qwen3": ("Qwen3ForCausalLM", "model.layers", "self_attn"),
    "gpt2": ("GPT2LMHeadModel", "transformer.h", "attn"),
}
CONVERTED = "ska-"
"""What the `model_type` of a converted model begins with; a host's name follows."""


@dataclass(frozen=True)
class HeadWeights:
    """An attention layer's weights by head, keys and values repeated where query heads share them.

    Attributes:
        query, key: [H, D, d].
        value: [H, P, d].
        output: [d, H P].
        query_bias, key_bias: [H, D], or None.
        value_bias: [H, P], or None.
        output_bias: [d], or None.
        dropout: of the layer's output, a probability.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    query_bias: Tensor | None
    key_bias: Tensor | None
    value_bias: Tensor | None
    output_bias: Tensor | None
    dropout: float = 0.0


def decoder_layers(model: nn.Module) -> tuple[nn.ModuleList, str]:
    """The decoder layers of a supported model, and the name of the attention in each.

    Raises:
        ValueError: another model, or one whose layers attend through a window or to an encoder.
    """
    config: Any = getattr(model, "config", None)
    host = getattr(config, "model_type", "").removeprefix(CONVERTED)
    class_name, path, attention = HOSTS.get(host, ("", "", ""))
    if type(model).__name__ not in (class_name, f"Ska{class_name}"):
        supported = ", ".join(sorted(name for name, _, _ in HOSTS.values()))
        raise ValueError(f"attention can be replaced in {supported}, not in {type(model).__name__}")
    windows = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    if windows or (host == "mistral" and config.sliding_window is not None):
        raise ValueError(
            f"this {class_name} attends through a sliding window, whose masks a layer without a window cannot share: "
            "build it with sliding_window=None (Qwen: use_sliding_window=False)"
        )
    if getattr(config, "add_cross_attention", False):
        raise ValueError(f"this {class_name} attends to an encoder: only decoders without cross-attention are replaced")
    layers = model.get_submodule(path)
    assert isinstance(layers, nn.ModuleList)
    return layers, attention


def learnt_positions(model: nn.Module) -> int | None:
    """How many tokens a window may have in a supported model that has learnt its positions, None in another."""
    decoder: Any = getattr(model, "transformer", None)
    return None if decoder is None else decoder.wpe.num_embeddings


@torch.no_grad()
def head_weights(attention: nn.Module) -> HeadWeights:
    """What a host's attention module has learnt, copied, in the dtype and on the device it is in.

    Norms of queries and keys (Qwen3) are taken into the projections: their weights exactly; the size that they divide
    by, which differs from token to token, by its root mean square over inputs of unit covariance. SKA brings every key
    and query to unit norm (from well above 0.1 on), so at full rank a factor of a token and head is without effect.
    """
    module: Any = attention
    if hasattr(module, "c_attn"):  # GPT-2: one Conv1D, [d, 3 d], for all three
        heads, query_dim = module.num_heads, module.head_dim
        weights, biases = module.c_attn.weight.T.chunk(3), module.c_attn.bias.chunk(3)
        query, key, value = (weight.unflatten(0, (heads, query_dim)).clone() for weight in weights)
        query_bias, key_bias, value_bias = (bias.unflatten(0, (heads, query_dim)).clone() for bias in biases)
        return HeadWeights(
            query,
            key,
            value,
            module.c_proj.weight.T.clone(),
            query_bias,
            key_bias,
            value_bias,
            module.c_proj.bias.clone(),
            module.resid_dropout.p,
        )
    size, groups = module.head_dim, module.num_key_value_groups
    parts: dict[str, Tensor | None] = {}
    for name, repeats in (("q", 1), ("k", groups), ("v", groups)):
        linear, norm = getattr(module, f"{name}_proj"), getattr(module, f"{name}_norm", None)
        weight = linear.weight.unflatten(0, (-1, size))
        factor = weight.new_ones(weight.shape[0], size)
        if norm is not None:
            spread = weight.float().square().sum(dim=(1, 2)).div(size).sqrt().clamp_min(1e-6)
            factor = (norm.weight.float() / spread[:, None]).to(weight.dtype)
        parts[name] = (weight * factor[..., None]).repeat_interleave(repeats, dim=0)
        bias = None if linear.bias is None else linear.bias.unflatten(0, (-1, size)) * factor
        parts[f"{name}_bias"] = None if bias is None else bias.repeat_interleave(repeats, dim=0)
    query, key, value = parts["q"], parts["k"], parts["v"]
    assert query is not None
    assert key is not None
    assert value is not None
    output_bias = None if module.o_proj.bias is None else module.o_proj.bias.clone()
    return HeadWeights(
        query,
        key,
        value,
        module.o_proj.weight.clone(),
        parts["q_bias"],
        parts["k_bias"],
        parts["v_bias"],
        output_bias,
    )


def cache_bytes_per_token(attention: nn.Module) -> int:
    """Bytes of the key-value cache that a host's attention layer keeps for one token of one sequence."""
    module: Any = attention
    if hasattr(module, "c_attn"):
        return 2 * module.num_heads * module.head_dim * module.c_attn.weight.element_size()
    return 2 * module.k_proj.out_features * module.k_proj.weight.element_size()
