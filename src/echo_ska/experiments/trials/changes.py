"""Changes to a freshly built network, by name: parts of the recipe taken away or changed, for ablations.

Those of the projections apply to every mixer that has them, so that SKA and its peers are changed alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echo_ska.models import EchoForCausalLM
from echo_ska.nn import Mamba2, SpectralKoopmanAttention
from echo_ska.nn.aids import gate_score, unit_norm
from echo_ska.nn.attention import RotaryAttention
from echo_ska.nn.initialization import inverse_softplus
from echo_ska.nn.peers.decay import HeadDecay, spread
from echo_ska.nn.projections import QueryKeyValue

Change = Callable[[EchoForCausalLM], None]


def projections(network: nn.Module) -> Iterator[QueryKeyValue]:
    """Every layer's query, key and value projections."""
    return (module for module in network.modules() if isinstance(module, QueryKeyValue))


def ska_layers(network: nn.Module) -> list[SpectralKoopmanAttention]:
    """The SKA layers, first to last.

    Raises:
        ValueError: there are none, so that a change of them would change nothing.
    """
    found = [module for module in network.modules() if isinstance(module, SpectralKoopmanAttention)]
    if not found:
        raise ValueError("The network has no SKA layer to change.")
    return found


def memories(network: nn.Module) -> list[Any]:
    """The layers that write pairs of keys and values through a gate: SKA and its linear peers, first to last.

    Raises:
        ValueError: there are none, so that a change of them would change nothing.
    """
    found = [module for module in network.modules() if hasattr(module, "gate_proj") and hasattr(module, "qkv")]
    if not found:
        raise ValueError("The network has no SKA layer and none of its peers to change.")
    return found


@torch.no_grad()
def own_queries(network: EchoForCausalLM) -> None:
    """W_q starts apart from W_k."""
    for qkv in projections(network):
        qkv.q_proj.reset_parameters()


@torch.no_grad()
def no_delay(network: EchoForCausalLM) -> None:
    """The keys' convolution starts as the identity."""
    for qkv in projections(network):
        if qkv.convolution is not None:
            taps = F.one_hot(torch.zeros(qkv.convolution.channels).long(), qkv.convolution.kernel_size)
            qkv.convolution.weight.copy_(taps)


@torch.no_grad()
def half_delay(network: EchoForCausalLM) -> None:
    """The keys' convolution starts as the identity in every second head."""
    for qkv in projections(network):
        if qkv.convolution is not None:
            taps = qkv.convolution.weight[qkv.widths[0] : qkv.widths[0] + qkv.widths[1]]
            of_heads = taps.view(qkv.num_heads, qkv.key_dim, -1)[1::2]
            of_heads.zero_()[..., 0] = 1.0


def no_positions(network: EchoForCausalLM) -> None:
    """Softmax attention without rotary positions: it reads by content alone, at any length (arXiv 2305.19466).

    Raises:
        ValueError: there is none.
    """
    layers = [module for module in network.modules() if isinstance(module, RotaryAttention)]
    if not layers:
        raise ValueError("The network has no softmax attention whose positions could be left out.")
    for layer in layers:
        layer.rope_theta = None


def plain_sigmoid(network: EchoForCausalLM) -> None:
    """SKA's write gate is a plain sigmoid, which never closes."""
    for ska in ska_layers(network):
        ska.gate_stretch = 0.0


def no_gate(network: EchoForCausalLM) -> None:
    """Every token is written in full, by SKA and its linear peers alike."""
    for memory in memories(network):
        memory.gate_proj = None


def gate_dropout(network: EchoForCausalLM) -> None:
    """In training, SKA and its linear peers open the write gates of a fifth of all sequences and heads."""
    for memory in memories(network):
        memory.gate_dropout = 0.2


def gate_starts_open(network: EchoForCausalLM) -> None:
    """Every token starts written at 0.9."""
    _start_gates(network, 0.9)


def gate_starts_low(network: EchoForCausalLM) -> None:
    """Every token starts written at 0.1, which helps DeltaNet where a state is full."""
    _start_gates(network, 0.1)


def _start_gates(network: EchoForCausalLM, weight: float) -> None:
    for memory in memories(network):
        nn.init.constant_(memory.gate_proj.bias, gate_score(weight))


def half_gated(network: EchoForCausalLM) -> None:
    """Every second head of SKA, from the first on, writes every token in full."""
    for ska in ska_layers(network):
        cast(Any, ska)._write_weight = _HalfOpen(ska._write_weight)


class _HalfOpen:
    """Stands before an SKA layer's write gate."""

    def __init__(self, gate: Callable[[Tensor, torch.dtype], Tensor | None]) -> None:
        self.gate = gate

    def __call__(self, hidden_states: Tensor, dtype: torch.dtype) -> Tensor | None:
        weight = self.gate(hidden_states, dtype)
        if weight is None:
            return None
        gated = torch.arange(weight.shape[-1], device=weight.device) % 2 == 1
        return torch.where(gated, weight, torch.ones_like(weight))


@torch.no_grad()
def paper_ridge(network: EchoForCausalLM) -> None:
    """SKA's ridge is fixed at the paper's 1e-3."""
    for ska in ska_layers(network):
        ska.initial_ridge = 1e-3
        ska.reset_parameters()
        ska.raw_ridge.requires_grad_(False)


def fast_ridge(network: EchoForCausalLM) -> None:
    """SKA's ridge learns at ten times the rate of the rest."""
    for ska in ska_layers(network):
        cast(Any, ska.raw_ridge)._learning_rate_scale = 10.0


def low_ridge(network: EchoForCausalLM) -> None:
    """SKA's ridge starts at a tenth."""
    _start_ridge(network, 0.1)


def high_ridge(network: EchoForCausalLM) -> None:
    """SKA's ridge starts at ten."""
    _start_ridge(network, 10.0)


def _start_ridge(network: EchoForCausalLM, ridge: float) -> None:
    for ska in ska_layers(network):
        nn.init.constant_(ska.raw_ridge, inverse_softplus(ridge))


@torch.no_grad()
def half_hebbian(network: EchoForCausalLM) -> None:
    """Every second head of SKA is Hebbian: its ridge is too large to solve anything, and its reads are scaled back."""
    large = 1e4
    for ska in ska_layers(network):
        ska.raw_ridge[1::2] = large
        ska.scale = nn.Parameter(torch.ones_like(ska.raw_ridge), requires_grad=False)
        ska.scale[1::2] = large


def products(network: EchoForCausalLM) -> None:
    """SKA's keys and queries are the products of two coordinates each, of vectors as short as that allows.

    Kernel ridge regression by a polynomial of degree two, cut to the rank: n coordinates have n (n + 1) / 2 products,
    and the first `rank` of them are taken.
    """
    for ska in ska_layers(network):
        old = ska.qkv
        size = math.ceil((math.sqrt(8 * ska.rank + 1) - 1) / 2)
        kernel = None if old.convolution is None else old.convolution.kernel_size
        ska.qkv = QueryKeyValue(
            old.q_proj.in_features,
            num_heads=ska.num_heads,
            key_dim=size,
            value_dim=ska.head_dim,
            conv_kernel=kernel,
        )
        rows, columns = torch.triu_indices(size, size)[:, : ska.rank].tolist()
        cast(Any, ska)._normalised = _Products(ska._normalised, rows, columns)


class _Products:
    """Stands before an SKA layer's normalisation."""

    def __init__(self, normalised: Callable[..., tuple[Tensor, Tensor]], rows: list[int], columns: list[int]) -> None:
        self.normalised, self.rows, self.columns = normalised, rows, columns

    def __call__(self, query: Tensor, key: Tensor, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor]:
        lifted = (side[..., self.rows] * side[..., self.columns] for side in (unit_norm(query), unit_norm(key)))
        return self.normalised(*lifted, cu_seqlens)


MEMORY_SPANS = (1000.0, 10.0)
EVEN_STEP = 0.1
"""The largest of the steps that Mamba-2's published start draws."""


@torch.no_grad()
def spread_decays(network: EchoForCausalLM) -> None:
    """Gated DeltaNet's and MesaNet's heads start by forgetting within 1,000 to 10 tokens, evenly in the logarithm.

    Their published start draws the rates, which is meant for dozens of heads: of one or two, all may forget within a
    few tokens, and then nothing is learnt. One head starts at 1,000 tokens.
    """
    decays = [module for module in network.modules() if isinstance(module, HeadDecay)]
    if not decays:
        raise ValueError("The network has no layer whose heads forget at a drawn rate.")
    for decay in decays:
        nn.init.zeros_(decay.A_log)
        spans = spread(MEMORY_SPANS, len(decay.dt_bias))
        decay.dt_bias.copy_(torch.tensor([inverse_softplus(1 / span) for span in spans]))


@torch.no_grad()
def even_mamba_aids(network: EchoForCausalLM) -> None:
    """Mamba-2 starts as SKA's peers do: keys (B) delayed by a token, queries (C) tied to them, decays spread.

    Its own start draws the taps of the short convolution, the projections of B and C apart, the rates and the steps.
    Here all steps start alike, and the rates make the spans: in Mamba-2 the step is also how strongly a token is
    written, and of heads that start slow by a small step next to nothing is read beside the layer's skip.
    """
    layers = [module for module in network.modules() if isinstance(module, Mamba2)]
    if not layers:
        raise ValueError("The network has no Mamba-2 layer.")
    for layer in layers:
        spans = torch.tensor(spread(MEMORY_SPANS, layer.heads))
        layer.A_log.copy_(-(spans * EVEN_STEP).log())
        nn.init.constant_(layer.dt_bias, inverse_softplus(EVEN_STEP))
        sizes = [layer.inner_size, layer.state_size, layer.state_size]
        delays = torch.tensor([0] * sizes[0] + [1] * sizes[1] + [0] * sizes[2])
        layer.convolution.weight.copy_(F.one_hot(delays, layer.convolution.kernel_size))
        if layer.convolution.bias is not None:
            nn.init.zeros_(layer.convolution.bias)
        _, _, keys, queries, _ = layer.in_proj.weight.split([layer.inner_size, *sizes, layer.heads])
        queries.copy_(keys)


def no_output_norm(network: EchoForCausalLM) -> None:
    """Reads keep their size, times a learnt scale a head, in SKA and its linear peers alike."""
    for memory in memories(network):
        memory.norm, memory.scale = None, nn.Parameter(torch.ones(memory.num_heads))


def no_convolution(network: EchoForCausalLM) -> None:
    """No short convolution on queries, keys and values, and so no delay."""
    for qkv in projections(network):
        qkv.convolution = None


def no_blend(network: EchoForCausalLM) -> None:
    """SKA's filter is the pure power."""
    for ska in ska_layers(network):
        ska.blend_weight = ska.blend_bias = None


def ridge_alone(network: EchoForCausalLM) -> None:
    """SKA at power 0: plain ridge regression."""
    no_blend(network)
    for ska in ska_layers(network):
        ska.power, ska.gain = 0, None


@torch.no_grad()
def small_tokens(network: EchoForCausalLM) -> None:
    """Token embeddings start 50 times smaller, at the customary standard deviation of 0.02."""
    network.model.embed_tokens.weight.mul_(0.02)


@torch.no_grad()
def full_branches(network: EchoForCausalLM) -> None:
    """Residual branches start at torch's own size."""
    for module in network.model.layers.modules():
        if isinstance(module, nn.Linear) and (scale := getattr(module, "start_scale", None)) is not None:
            module.weight.div_(scale)
