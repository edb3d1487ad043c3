"""The configuration of an Echo model: which mixer stands in which layer, and the sizes."""

from __future__ import annotations

import inspect
import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from echo_ska.nn import registry

_READ_BY_ONE_KIND = {"sliding_window": "sliding_attention"}
"""The kind of layer that alone reads a field."""

_ON_DISK = "mixer_types"
"""What `layer_types` is called in config.json.

transformers reads that file as a plain `PreTrainedConfig` before it knows whose it is (`AutoTokenizer`, the Trainer on
resuming), and that class refuses a `layer_types` of other kinds than its own models have.
"""


class EchoConfig(PreTrainedConfig):
    """Configuration of `EchoModel` and `EchoForCausalLM`.

    The pure Mamba-2 model, the Mamba-2 + attention hybrid and Echo differ in `layer_types` alone. Names that
    neither this class nor `PreTrainedConfig` defines are refused.

    Args:
        vocab_size: token ids, V.
        hidden_size: width of the residual stream, d.
        num_hidden_layers: blocks, N; None = as many as `layer_types` names, and four without it.
        layer_types: the mixer of each layer, counted from 0: "mamba2", "ska", "ska-paper" or "full_attention"
            (Hugging Face's name; "attention" is read as it, as they do); or one of SKA's peers (docs/peers.md).
            In config.json, and as an alias by keyword, it is called `mixer_types`.
        ska_layers, attention_layers: shorthand for `layer_types`: the layers (counted from 0) that hold SKA or
            softmax attention; all others hold Mamba-2. With none of the three, SKA is in the middle layer,
            num_hidden_layers // 2, of three or more; `ska_layers=[]` is Mamba-2 alone.
        ska_at_ends: allow SKA in the first and the last layer.
        num_heads: heads of SKA, its peers and attention, H.
        rank: width of SKA's and its peers' keys and queries, r.
        head_dim: width of a head's values (and of attention's keys), P; None = hidden_size / num_heads.
        power: K of SKA's spectral filter.
        blended: whether SKA mixes the filtered read with the plain one.
        refresh_interval: None reads exactly; S reads chunk-causally.
        gate_dropout: in training, the probability that a head of SKA or of a peer with its write gate stores all of a
            sequence in full (docs/recipe.md).
        mixer_dropout: in training, the probability that a sequence goes past a layer's mixer (stochastic depth): a
            number a layer, None for none (docs/recipe.md).
        state_size: columns of Mamba-2's and Mamba-3's state. Their heads are 64 wide, or hidden_size / num_heads where
            64 does not divide their inner width.
        expand: Mamba-2's and Mamba-3's inner width over `hidden_size`.
        conv_kernel: taps of the short convolutions of every mixer.
        feed_forward: "swiglu", "koopman", "koopman-gated" or "none".
        intermediate_size: the feed-forward layers' inner width; None = hidden_size * 8/3, rounded up to 64s.
        rope_theta: base of attention's rotary frequencies.
        sliding_window: tokens that a "sliding_attention" layer sees, the current one included.
        norm_eps: epsilon of all norms.
        max_position_embeddings: the length that evaluation tools may use; no layer is limited by it.
        tie_word_embeddings: share the embedding with the head, which saves vocab_size * hidden_size parameters.

    Raises:
        ValueError: a field is unknown, or sizes do not fit; the message says what to change.
    """

    model_type = "echo_ska"
    attribute_map = {  # noqa: RUF012 (other names of fields: what Hugging Face's tools ask for, and that in config.json)
        "num_attention_heads": "num_heads",
        _ON_DISK: "layer_types",
    }
    # What tools ask of every configuration; of the class, so that those who give none find none in config.json.
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 (the Trainer adds a list to it)

    def __init__(
        self,
        vocab_size: int = 256,
        hidden_size: int = 128,
        num_hidden_layers: int | None = None,
        layer_types: list[str] | None = None,
        ska_layers: list[int] | None = None,
        attention_layers: list[int] | None = None,
        ska_at_ends: bool = False,
        num_heads: int = 4,
        rank: int = 24,
        head_dim: int | None = None,
        power: int = 2,
        blended: bool = True,
        refresh_interval: int | None = None,
        gate_dropout: float = 0.0,
        mixer_dropout: list[float] | None = None,
        state_size: int = 64,
        expand: int = 2,
        conv_kernel: int = 4,
        feed_forward: str = "swiglu",
        intermediate_size: int | None = None,
        rope_theta: float = 10_000.0,
        sliding_window: int = 64,
        norm_eps: float = 1e-5,
        max_position_embeddings: int = 1_048_576,
        tie_word_embeddings: bool = False,
        **kwargs: Any,
    ) -> None:
        layer_types = _by_either_name(layer_types, kwargs.pop(_ON_DISK, None))
        unknown = sorted(name for name in set(kwargs) - _inherited_names() if not name.startswith("_"))
        if unknown:
            raise ValueError(f"EchoConfig has no field {', '.join(unknown)}: see help(EchoConfig) for the names")
        for name in ("dtype", "torch_dtype"):
            _require_dtype(name, kwargs.get(name))
        if num_hidden_layers is None:
            num_hidden_layers = 4 if layer_types is None else len(_spelled(layer_types))
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.ska_at_ends = ska_at_ends
        self.num_heads = num_heads
        self.rank = rank
        whole = isinstance(hidden_size, int) and isinstance(num_heads, int) and num_heads > 0
        if head_dim is None and whole and hidden_size % num_heads == 0:
            head_dim = hidden_size // num_heads
        self.head_dim = head_dim
        self.power = power
        self.blended = blended
        self.refresh_interval = refresh_interval
        self.gate_dropout = gate_dropout
        self.mixer_dropout = mixer_dropout
        self.state_size = state_size
        self.expand = expand
        self.conv_kernel = conv_kernel
        self.feed_forward = feed_forward
        self.intermediate_size = intermediate_size
        self.rope_theta = rope_theta
        self.sliding_window = sliding_window
        self.norm_eps = norm_eps
        self.max_position_embeddings = max_position_embeddings
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)
        self.use_cache = kwargs.get("use_cache", True)  # the base class drops it
        # Last, because the base class's own check of this field, at the end of its __init__, knows no SKA.
        self.layer_types = _layer_types(num_hidden_layers, layer_types, ska_layers, attention_layers)
        self._check()

    @property
    def mamba_head_dim(self) -> int:
        """Width of a Mamba-2 head."""
        inner = self.expand * self.hidden_size
        return 64 if inner % 64 == 0 else self.hidden_size // self.num_heads

    @property
    def unread_fields(self) -> frozenset[str]:
        """Fields that change nothing in this model: no layer reads them, or they ask for nothing."""
        unread = {name for name, kind in _READ_BY_ONE_KIND.items() if kind not in self.layer_types}
        idle = {"gate_dropout": not self.gate_dropout, "mixer_dropout": not any(self.mixer_dropout or ())}
        return frozenset(unread | {name for name, asks_nothing in idle.items() if asks_nothing})

    def to_json_file(self, json_file_path: str | os.PathLike[str], use_diff: bool = True) -> None:
        """Write config.json, where `layer_types` is called `mixer_types`; the constructor takes both names.

        Args:
            json_file_path: the file; `save_pretrained` names it.
            use_diff: leave out what `PreTrainedConfig` has by default, as Hugging Face does.

        Raises:
            OSError: it cannot be written.
        """
        fields = json.loads(self.to_json_string(use_diff))
        fields[_ON_DISK] = fields.pop("layer_types")
        Path(json_file_path).write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def validate(self) -> None:
        """Check all fields together (Hugging Face calls this on saving)."""
        self._check()

    def _check(self) -> None:
        optional = (
            name for name in ("head_dim", "intermediate_size", "refresh_interval") if getattr(self, name) is not None
        )
        for name in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_heads",
            "rank",
            "state_size",
            "expand",
            "sliding_window",
            "max_position_embeddings",
            *optional,
        ):
            _require_whole(name, getattr(self, name), least=1)
        _require_whole("power", self.power, least=0)
        _require_whole("conv_kernel", self.conv_kernel, least=2)  # two taps hold the delay of one token
        for name in ("rope_theta", "norm_eps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ValueError(f"{name} must be a positive number, got {value!r}")
        _require_share("gate_dropout", self.gate_dropout)
        for name in ("blended", "ska_at_ends"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}")
        if self.head_dim is None:
            raise ValueError(
                f"hidden_size = {self.hidden_size} is not a multiple of num_heads = {self.num_heads}: change one, or "
                "give head_dim"
            )
        _require_list("layer_types", self.layer_types, "names, one a layer")
        if len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"layer_types names {len(self.layer_types)} layers, num_hidden_layers is {self.num_hidden_layers}"
            )
        if self.mixer_dropout is not None:
            if not isinstance(self.mixer_dropout, list | tuple) or len(self.mixer_dropout) != self.num_hidden_layers:
                raise ValueError(
                    f"mixer_dropout must be a list of {self.num_hidden_layers} numbers, one a layer, or None, got "
                    f"{self.mixer_dropout!r}"
                )
            for index, share in enumerate(self.mixer_dropout):
                _require_share(f"mixer_dropout[{index}]", share)
        for index, name in enumerate(self.layer_types):
            if not isinstance(name, str) or name not in registry.MIXERS:
                raise ValueError(f"layer_types[{index}] is {name!r}: choose from {', '.join(registry.MIXERS)}")
            at_end = index in (0, self.num_hidden_layers - 1)
            if name.startswith("ska") and at_end and not self.ska_at_ends:
                raise ValueError(
                    f"layer {index} of {self.num_hidden_layers} is SKA: the first and the last layer are not, unless "
                    "ska_at_ends=True asks for it"
                )
        if not isinstance(self.feed_forward, str) or self.feed_forward not in registry.FEED_FORWARDS:
            raise ValueError(f"feed_forward is {self.feed_forward!r}: choose from {', '.join(registry.FEED_FORWARDS)}")


def _require_whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        optional = " or None" if name in ("refresh_interval", "intermediate_size", "head_dim") else ""
        raise ValueError(f"{name} must be an integer >= {least}{optional}, got {value!r}")


def _require_share(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(f"{name} must be a number of at least 0 and below 1, got {value!r}")


def _require_list(name: str, value: object, of: str) -> None:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name} must be a list of {of}, got {value!r}")


def _require_dtype(name: str, value: object) -> None:
    dtype = getattr(torch, value, None) if isinstance(value, str) else value
    if value is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"{name} must be a floating-point type of torch, such as 'float32', or None, got {value!r}")


def _by_either_name(layer_types: list[str] | None, mixer_types: list[str] | None) -> list[str] | None:
    """`layer_types`, or what config.json calls so; given twice, it must be the same."""
    if layer_types is None or mixer_types is None:
        return mixer_types if layer_types is None else layer_types
    if _spelled(layer_types) != _spelled(mixer_types):
        raise ValueError(
            f"{_ON_DISK} is {mixer_types!r} and layer_types {layer_types!r}: they are two names of one field, give one"
        )
    return layer_types


def _spelled(layer_types: list[str]) -> list[str]:
    _require_list("layer_types", layer_types, "names, one a layer")
    return ["full_attention" if name == "attention" else name for name in layer_types]


def _layer_types(
    count: int, layer_types: list[str] | None, ska_layers: list[int] | None, attention_layers: list[int] | None
) -> list[str]:
    if layer_types is not None:
        if ska_layers is not None or attention_layers is not None:
            raise ValueError("give layer_types, or its shorthand ska_layers and attention_layers, not both")
        return _spelled(layer_types)
    _require_whole("num_hidden_layers", count, least=1)
    names = ["mamba2"] * count
    if ska_layers is None and attention_layers is None:
        ska_layers = [count // 2] if count >= 3 else []
    shorthand = (("ska", "ska_layers", ska_layers), ("full_attention", "attention_layers", attention_layers))
    for name, field, layers in shorthand:
        if layers is None:
            continue
        _require_list(field, layers, "layers")
        for layer in layers:
            if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < count:
                raise ValueError(f"{field} names layer {layer!r}, but layers are counted from 0 to {count - 1}")
            if names[layer] != "mamba2":
                raise ValueError(f"layer {layer} is named twice: in ska_layers and attention_layers, or in one of them")
            names[layer] = name
    return names


def _inherited_names() -> set[str]:
    """What PreTrainedConfig and the tools around it take by keyword."""
    fields = set(PreTrainedConfig().to_dict()) | set(inspect.signature(PreTrainedConfig.__init__).parameters)
    return fields | {
        "torch_dtype",
        "use_cache",
        "attn_implementation",
        "name_or_path",
        "auto_map",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "num_labels",
        "quantization_config",
    }
