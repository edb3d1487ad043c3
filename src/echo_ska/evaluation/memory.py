"""What a model keeps while it reads: bytes of live state, by kind of mixer, against its attention twin's KV cache.

Where it is affordable the bytes are measured: a model reads tokens, and the tensors in its cache are summed. Every
layer of a kind has the same state, so a slice of the model with one layer of each kind is read, and multiplied; the
180M model then fits into any laptop. Longer lengths come from the mixers' own `state_bytes`, which must agree with the
measurement wherever both exist. All figures are for one sequence (batch 1), in bytes as they are stored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from echo_ska.models import EchoCache, EchoConfig, EchoForCausalLM
from echo_ska.models.presets import build_on_meta, count_parameters, find_preset, preset

LENGTHS = tuple(2**exponent for exponent in range(10, 21))
"""1,024 ... 1,048,576 tokens."""

MEASURED_UP_TO = 2048
SEGMENT = 256

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""What a model can run in. Whatever the choice, SKA's sums stay float64 and Mamba-2's scan float32."""


@dataclass(frozen=True)
class StateBytes:
    """One sequence's state after `tokens` tokens.

    Attributes:
        tokens: tokens read.
        by_kind: bytes of all layers of a kind together, by the kind's name in `layer_types`.
        measured: whether a live state was summed; else it is the mixers' formula.
    """

    tokens: int
    by_kind: dict[str, int]
    measured: bool

    @property
    def total(self) -> int:
        """Bytes of all layers."""
        return sum(self.by_kind.values())


@dataclass(frozen=True)
class ModelMemory:
    """A model and its state at several lengths.

    Attributes:
        name: the model's.
        parameters: counted.
        layers: how many of its layers are of each kind.
        rows: one a length, ascending.
    """

    name: str
    parameters: int
    layers: dict[str, int]
    rows: list[StateBytes]

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries and numbers: `state_bytes` by length, with the kinds' and their `total`."""
        return {
            "name": self.name,
            "parameters": self.parameters,
            "layers": self.layers,
            "state_bytes": {str(row.tokens): {**row.by_kind, "total": row.total} for row in self.rows},
            "measured_at": [row.tokens for row in self.rows if row.measured],
        }


@dataclass(frozen=True)
class MemoryComparison:
    """A model beside the twin that has softmax attention where it has SKA."""

    model: ModelMemory
    control: ModelMemory

    def ratios(self) -> Iterator[tuple[int, float, float | None]]:
        """(tokens, control's state over the model's, KV cache over SKA's state); None where there is no SKA."""
        for row, other in zip(self.model.rows, self.control.rows, strict=True):
            recall = sum(size for kind, size in row.by_kind.items() if kind.startswith("ska"))
            cache = other.by_kind.get("full_attention", 0)
            yield row.tokens, other.total / row.total, cache / recall if recall else None

    def to_json(self) -> dict[str, Any]:
        """Both models, and the ratios by length."""
        return {
            "model": self.model.to_json(),
            "control": self.control.to_json(),
            "ratio": {str(tokens): whole for tokens, whole, _ in self.ratios()},
            "ratio_of_kv_cache_to_ska": {str(tokens): part for tokens, _, part in self.ratios()},
        }


def compare_with_control(name: str, lengths: Sequence[int] = LENGTHS, dtype: str = "fp32") -> MemoryComparison:
    """A preset's memory beside its attention twin's.

    Raises:
        ValueError: no preset has that name, or it is the attention twin itself.
    """
    control = find_preset(name).control
    if name == control:
        raise ValueError(f"{name} is what the others are compared with: name {find_preset(name).family} instead")
    return MemoryComparison(
        model_memory(name, preset(name), lengths, dtype=dtype),
        model_memory(control, preset(control), lengths, dtype=dtype),
    )


def model_memory(
    name: str,
    config: EchoConfig,
    lengths: Sequence[int] = LENGTHS,
    *,
    measured_up_to: int = MEASURED_UP_TO,
    dtype: str = "fp32",
) -> ModelMemory:
    """The state of a model at `lengths` tokens: measured up to `measured_up_to`, from the formula beyond.

    Args:
        name: what to call it.
        config: the model's. Its weights are never built whole.
        lengths: tokens, each at least 1.
        measured_up_to: 0 measures nothing.
        dtype: a key of `DTYPES`, what the model runs in.

    Raises:
        ValueError: a length below 1, or another dtype.
        ArithmeticError: measurement and formula disagree.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if any(length < 1 for length in lengths):
        raise ValueError(f"lengths must be at least 1, got {min(lengths)}")
    whole = build_on_meta(config).to(DTYPES[dtype])
    formula = {length: formula_bytes_by_kind(whole, length) for length in sorted(set(lengths))}
    live = _measure(config, [length for length in formula if length <= measured_up_to], DTYPES[dtype])
    for length, by_kind in live.items():
        if by_kind != formula[length]:
            raise ArithmeticError(
                f"after {length:,} tokens the live state of {name} has {by_kind} bytes and its formula says "
                f"{formula[length]}: one of them is wrong"
            )
    rows = [StateBytes(length, by_kind, length in live) for length, by_kind in formula.items()]
    return ModelMemory(name, count_parameters(config), dict(Counter(config.layer_types)), rows)


def formula_bytes_by_kind(model: EchoForCausalLM, tokens: int) -> dict[str, int]:
    """Bytes of one sequence's state after `tokens` tokens by kind of mixer, as the mixers compute them."""
    sizes: Counter[str] = Counter()
    for kind, block in zip(model.config.layer_types, model.model.layers, strict=True):
        mixer: Any = block.mixer
        sizes[kind] += mixer.state_bytes(tokens)
    return dict(sizes)


@torch.no_grad()
def _measure(config: EchoConfig, lengths: list[int], dtype: torch.dtype) -> dict[int, dict[str, int]]:
    """Live bytes by kind at ascending `lengths`, from one layer of each kind of this configuration."""
    layers = Counter(config.layer_types)
    settings = config.to_dict() | {
        "layer_types": list(layers),
        "num_hidden_layers": len(layers),
        "ska_at_ends": True,
        "feed_forward": "none",  # neither it nor the embedding keeps anything
        "vocab_size": 2,
    }
    for passing in ("architectures", "model_type", "transformers_version"):
        settings.pop(passing, None)
    slice_config = EchoConfig(**settings)
    model = EchoForCausalLM(slice_config).to(dtype).eval()
    cache = EchoCache(slice_config)
    measured: dict[int, dict[str, int]] = {}
    tokens = 0
    for length in lengths:
        while tokens < length:
            segment = torch.zeros(1, min(SEGMENT, length - tokens), dtype=torch.int64)
            segment[:, ::2] = 1
            model.prefill(segment, cache)
            tokens += segment.shape[1]
        cache.compact()
        one_each = cache.bytes_by_kind()
        measured[length] = {kind: layers[kind] * size for kind, size in one_each.items()}
    return measured
