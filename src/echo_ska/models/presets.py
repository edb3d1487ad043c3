"""Named models, and for each Echo its twins: the same class and size with other mixers in SKA's place.

| family | layers | width | SKA at | heads, rank | Mamba-2 state | feed-forward | vocabulary | parameters |
|---|---|---|---|---|---|---|---|---|
| echo-1m | 4 | 128 | 1, 2 | 4, 24 | 16 | SwiGLU | 128 | 0.95 M |
| echo-50m | 16 | 448 | 3, 7, 11 | 7, 56 | 64 | Koopman MLP | 32,000 | 50.6 M |
| echo-180m | 24 | 768 | 8, 16 | 12, 48 | 64 | Koopman MLP | 32,000 | 185.0 M |
| echo-1b | 20 | 2,048 | 5, 10, 15 | 32, 48 | 64 | Koopman MLP | 32,000 | 995.9 M |

32,000 is the vocabulary of the Llama 2 and Mistral tokenizers, the published size that brings echo-50m and echo-180m
nearest to their names. The large ones tie their embeddings to the output layer. Sizes are those of docs/method.md,
section 6, but for echo-1b's, which the paper does not have: they are ours, in its manner, and nobody has trained it.

State of echo-180m, as it is stored: SKA 1.54 MB (0.79 MB counted in float32; its sums are kept in float64, see
docs/numerics.md), Mamba-2 9.1 MB. Mamba-2's state is the larger part at every usual size, and a size of 128 instead
of 64 would double it to 17.8 MB for 1 % more parameters: hence 64.

Twins of each family: `-ssm` has Mamba-2 where Echo has SKA, `-ssm-attention` softmax attention. Their feed-forward
layers are widened or narrowed until the whole model has Echo's parameters.
`echo-1m-paper-placement` has its SKA layers at the end, {2, 3}, where the paper puts them in its synthetic tasks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from echo_ska.models.configuration_echo import EchoConfig
from echo_ska.models.modeling_echo import EchoForCausalLM
from echo_ska.nn.feed_forward import default_intermediate_size

TOLERANCE = 0.005
"""How far a twin's parameter count may be from its Echo's, as a fraction."""


@dataclass(frozen=True)
class Preset:
    """A named configuration.

    Attributes:
        summary: what it is, in a few words.
        family: the Echo it belongs to: itself, or the one whose twin it is.
        fields: what it sets in `EchoConfig`.
        in_place_of_ska: the mixer that a twin has where its Echo has SKA; None in an Echo.
    """

    summary: str
    family: str
    fields: dict[str, Any]
    in_place_of_ska: str | None = None

    @property
    def control(self) -> str:
        """The family's attention twin, the model that keeps a KV cache."""
        return f"{self.family}-ssm-attention"


_ONE = {
    "vocab_size": 128,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "ska_layers": [1, 2],
    "num_heads": 4,
    "rank": 24,
    "state_size": 16,
    "feed_forward": "swiglu",
}
_FIFTY = {
    "vocab_size": 32_000,
    "hidden_size": 448,
    "num_hidden_layers": 16,
    "ska_layers": [3, 7, 11],
    "num_heads": 7,
    "rank": 56,
    "state_size": 64,
    "feed_forward": "koopman",
    "tie_word_embeddings": True,
}
_HUNDRED_EIGHTY = {
    "vocab_size": 32_000,
    "hidden_size": 768,
    "num_hidden_layers": 24,
    "ska_layers": [8, 16],
    "num_heads": 12,
    "rank": 48,
    "state_size": 64,
    "feed_forward": "koopman",
    "tie_word_embeddings": True,
}

_BILLION = {
    "vocab_size": 32_000,
    "hidden_size": 2048,
    "num_hidden_layers": 20,
    "ska_layers": [5, 10, 15],
    "num_heads": 32,
    "rank": 48,
    "state_size": 64,
    "feed_forward": "koopman",
    "tie_word_embeddings": True,
}


def _family(name: str, fields: dict[str, Any]) -> dict[str, Preset]:
    return {
        name: Preset("Mamba-2 + SKA", name, fields),
        f"{name}-ssm": Preset("Mamba-2 alone", name, fields, "mamba2"),
        f"{name}-ssm-attention": Preset("Mamba-2 + softmax attention", name, fields, "full_attention"),
    }


PRESETS: dict[str, Preset] = {
    **_family("echo-1m", _ONE),
    "echo-1m-paper-placement": Preset(
        "Mamba-2 + SKA in the last two layers", "echo-1m", _ONE | {"ska_layers": [2, 3], "ska_at_ends": True}
    ),
    **_family("echo-50m", _FIFTY),
    **_family("echo-180m", _HUNDRED_EIGHTY),
    **_family("echo-1b", _BILLION),
}
"""Presets by name."""


def preset(name: str, **overrides: Any) -> EchoConfig:
    """The configuration of a preset.

    Args:
        name: a key of `PRESETS`.
        overrides: fields of `EchoConfig` to set otherwise. A twin's apply to its Echo as well, so that the two stay
            of one size: `preset("echo-1m-ssm-attention", ska_layers=[2])` has attention in layer 2. But an
            `intermediate_size` given for a twin is the twin's own, and then nothing is matched.

    Raises:
        ValueError: no preset has that name, the fields do not fit, or no width of the feed-forward layers gives a
            twin its Echo's parameter count within half a percent.
    """
    chosen = find_preset(name)
    fields = chosen.fields | overrides
    if "layer_types" in overrides:
        fields = {key: value for key, value in fields.items() if key != "ska_layers" or "ska_layers" in overrides}
    if chosen.in_place_of_ska is None:
        return EchoConfig(**fields)
    asked_width = fields.pop("intermediate_size", None)
    echo = EchoConfig(**fields)
    layers = [chosen.in_place_of_ska if kind.startswith("ska") else kind for kind in echo.layer_types]
    fields = {key: value for key, value in fields.items() if key not in ("ska_layers", "attention_layers")}
    fields["layer_types"] = layers
    if asked_width is not None or layers == echo.layer_types:
        return EchoConfig(**fields, intermediate_size=asked_width)
    return EchoConfig(**fields, intermediate_size=matched_width(fields, count_parameters(echo), name))


def find_preset(name: str) -> Preset:
    """The preset of that name; raises ValueError, naming the known ones, where there is none."""
    if name not in PRESETS:
        raise ValueError(f"there is no preset {name!r}: choose from {', '.join(PRESETS)}")
    return PRESETS[name]


def build_on_meta(config: EchoConfig) -> EchoForCausalLM:
    """The model without its numbers: shapes and dtypes alone, in no memory, whatever its size."""
    with torch.device("meta"):
        return EchoForCausalLM(config)


def count_parameters(config: EchoConfig) -> int:
    """Parameters of the model, counted, tied ones once."""
    return sum(parameter.numel() for parameter in build_on_meta(config).parameters())


def matched_width(fields: dict[str, Any], parameters: int, name: str = "the model") -> int:
    """The `intermediate_size` that brings a model nearest to so many parameters.

    Args:
        fields: of its `EchoConfig`, without `intermediate_size`.
        parameters: to come within half a percent of.
        name: of the model, for the errors.

    Raises:
        ValueError: it has no feed-forward layers, or no width is near enough.
    """
    start = default_intermediate_size(fields["hidden_size"])
    at_start, above = (count_parameters(EchoConfig(**fields, intermediate_size=start + more)) for more in (0, 2))
    per_unit = (above - at_start) / 2  # a model's size is linear in the width
    if per_unit == 0:
        raise ValueError(f"{name} has no feed-forward layers to match its size with: give feed_forward another value")
    exact = start + (parameters - at_start) / per_unit
    for multiple in (64, 8, 2):  # the roundest that is near enough: matrix products are fastest on round sizes
        width = round(exact / multiple) * multiple
        if width > 0 and abs(width - exact) * per_unit <= TOLERANCE * parameters:
            return width
    raise ValueError(
        f"{name} cannot have the {parameters:,} parameters of its Echo: its feed-forward layers would be "
        f"{exact:.0f} wide; give it an intermediate_size of its own"
    )
