"""Changes to a freshly built network, by name: parts of the recipe taken away or put otherwise, for ablations.

Those of the projections apply to every mixer that has them, so that SKA and its peers are changed alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from echo_ska.models import EchoForCausalLM
from echo_ska.nn import SpectralKoopmanAttention
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


def plain_sigmoid(network: EchoForCausalLM) -> None:
    """SKA's write gate is a plain sigmoid, which never closes."""
    for ska in ska_layers(network):
        ska.gate_stretch = 0.0


def no_gate(network: EchoForCausalLM) -> None:
    """Every token is written in full, by SKA and its linear peers alike."""
    for memory in memories(network):
        memory.gate_proj = None


@torch.no_grad()
def paper_ridge(network: EchoForCausalLM) -> None:
    """SKA's ridge is fixed at the paper's 1e-3."""
    for ska in ska_layers(network):
        ska.initial_ridge = 1e-3
        ska.reset_parameters()
        ska.raw_ridge.requires_grad_(False)


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
