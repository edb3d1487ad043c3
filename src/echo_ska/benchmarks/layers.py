"""Whole mixers with their projections, at equal width; among them transformers' Mamba-2 with the weights of ours."""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from echo_ska.benchmarks.clock import interleaved
from echo_ska.benchmarks.gate import Verdict, largest_error, verdict
from echo_ska.benchmarks.plan import Plan, Sizes
from echo_ska.benchmarks.routes import TOLERANCES
from echo_ska.nn import Mamba2, SequenceMixer, SoftmaxAttention, SpectralKoopmanAttention


@dataclass(frozen=True)
class Layer:
    """One mixer.

    Attributes:
        label: how tables call it.
        route: the row of `routes.ROUTES` that it belongs to.
        module: hidden states [B, T, d] to the mixed ones, or to a tuple that begins with them; float32.
        definition: a mixer of ours in float64 that computes the same, token by token through its state.
    """

    label: str
    route: str
    module: nn.Module
    definition: SequenceMixer


def _ours(label: str, route: str, mixer: SequenceMixer) -> Layer:
    return Layer(label, route, mixer, copy.deepcopy(mixer).double())


def _mamba2(sizes: Sizes) -> Mamba2:
    return Mamba2(sizes.hidden_size, head_dim=sizes.head_dim, state_size=sizes.state_size)


def _transformers_mamba2(sizes: Sizes, chunk_size: int) -> Layer:
    ours = _mamba2(sizes)
    label = f"Mamba-2, transformers, chunks of {chunk_size}"
    return Layer(label, "mamba2", transformers_twin(ours, chunk_size), copy.deepcopy(ours).double())


LAYERS: dict[str, Callable[[Sizes], Layer]] = {
    "ska": lambda sizes: _ours(
        "SKA",
        "ska",
        SpectralKoopmanAttention(sizes.hidden_size, num_heads=sizes.heads, rank=sizes.rank, power=sizes.power),
    ),
    "softmax": lambda sizes: _ours(
        "softmax attention", "softmax", SoftmaxAttention(sizes.hidden_size, num_heads=sizes.heads)
    ),
    "mamba2": lambda sizes: _ours("Mamba-2", "mamba2", _mamba2(sizes)),
    "mamba2-transformers-64": lambda sizes: _transformers_mamba2(sizes, 64),
    "mamba2-transformers-256": lambda sizes: _transformers_mamba2(sizes, 256),
}
"""By name; a new one is a new row. 256 is transformers' default chunk, 64 about the fastest of theirs on a CPU."""


def transformers_twin(ours: Mamba2, chunk_size: int) -> nn.Module:
    """Transformers' mixer with the parameters of `ours`; without the mamba_ssm package it runs its PyTorch path."""
    from transformers import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    config = Mamba2Config(
        hidden_size=ours.in_proj.in_features,
        num_heads=ours.heads,
        head_dim=ours.head_dim,
        state_size=ours.state_size,
        n_groups=1,
        chunk_size=chunk_size,
        num_hidden_layers=1,
    )
    # It says in three long lines of its own that mamba_ssm is not installed; docs/benchmarks.md says so once.
    logging.getLogger("transformers.integrations.hub_kernels").setLevel(logging.ERROR)
    theirs: nn.Module = Mamba2Mixer(config, layer_idx=0)
    weights = ours.state_dict()
    weights["conv1d.weight"] = weights.pop("convolution.weight").flip(1)[:, None]  # they count taps the other way
    weights["conv1d.bias"] = weights.pop("convolution.bias")
    theirs.load_state_dict(weights)
    return theirs


def make_layers(routes: Mapping[str, object], plan: Plan) -> dict[str, Layer]:
    """The layers of these routes, on the plan's device."""
    torch.manual_seed(0)
    made = {name: make(plan.sizes) for name, make in LAYERS.items()}
    for layer in made.values():
        layer.module.to(plan.device)
    return {name: layer for name, layer in made.items() if layer.route in routes}


def judge_layer(layer: Layer, sizes: Sizes, device: str, tokens: int) -> Verdict:
    """Outputs against the definition token by token, the input's gradient against the definition as a whole."""
    tolerance = TOLERANCES[torch.float32]
    source = torch.Generator().manual_seed(0)
    x = torch.randn(1, tokens, sizes.hidden_size, generator=source)
    target = torch.randn(x.shape, generator=source, dtype=torch.float64)

    def gradient(module: nn.Module, hidden: Tensor) -> list[Tensor]:
        hidden = hidden.detach().requires_grad_()
        output = _run(module, hidden)
        (found,) = torch.autograd.grad(output, hidden, target.to(output))
        return [output.detach().double().cpu(), found.double().cpu()]

    def compare() -> dict[str, tuple[float, float]]:
        expected = gradient(layer.definition, x.double())
        expected[0] = _token_by_token(layer.definition, x.double())
        error = largest_error(gradient(layer.module, x.to(device)), expected)
        return {f"at {tokens} tokens": (error, tolerance)}

    return verdict(tolerance, compare)


def measure_layers(layers: Mapping[str, Layer], tokens: int, plan: Plan) -> dict[str, dict[str, list[float]]]:
    """Seconds forward, and forward with backward (the parameters' gradients too), at one length."""
    x = torch.randn(1, tokens, plan.sizes.hidden_size, device=plan.device)
    calls: dict[str, Callable[[], object]] = {}
    for name, layer in layers.items():
        calls[f"{name} forward"] = functools.partial(_forward, layer.module, x)
        calls[f"{name} forward_backward"] = functools.partial(_forward_backward, layer.module, x)
    seconds = interleaved(calls, rounds=plan.rounds, budget=plan.seconds_per_length, device=plan.device)
    return {name: {kind: seconds[f"{name} {kind}"] for kind in ("forward", "forward_backward")} for name in layers}


def _run(module: nn.Module, x: Tensor) -> Tensor:
    output = module(x)
    mixed: Tensor = output[0] if isinstance(output, tuple) else output
    return mixed


@torch.no_grad()
def _token_by_token(mixer: SequenceMixer, x: Tensor) -> Tensor:
    outputs, state = [], None
    for t in range(x.shape[1]):
        output, state = mixer(x[:, t : t + 1], state, output_state=True)
        outputs.append(output)
    return torch.cat(outputs, dim=1)


@torch.no_grad()
def _forward(module: nn.Module, x: Tensor) -> None:
    _run(module, x)


def _forward_backward(module: nn.Module, x: Tensor) -> None:
    module.zero_grad(set_to_none=True)
    output = _run(module, x.detach().requires_grad_())
    output.backward(output.detach())
