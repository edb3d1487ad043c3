"""Mixers and feed-forward layers by the names that configurations use; a new one is a new row."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any, Protocol

from torch import nn

from echo_ska.nn.attention import SoftmaxAttention
from echo_ska.nn.feed_forward import KoopmanMLP, SwiGLU
from echo_ska.nn.mamba2 import Mamba2
from echo_ska.nn.mixer import SequenceMixer
from echo_ska.nn.ska import SpectralKoopmanAttention


class LayerSizes(Protocol):
    """What the builders below read from a configuration; `EchoConfig` documents the fields."""

    hidden_size: int
    num_heads: int
    rank: int
    head_dim: int
    power: int
    blended: bool
    refresh_interval: int | None
    state_size: int
    expand: int
    conv_kernel: int
    intermediate_size: int | None
    rope_theta: float
    norm_eps: float

    @property
    def mamba_head_dim(self) -> int: ...


def _ska(config: LayerSizes) -> SequenceMixer:
    return SpectralKoopmanAttention(
        config.hidden_size,
        num_heads=config.num_heads,
        rank=config.rank,
        head_dim=config.head_dim,
        power=config.power,
        blended=config.blended,
        conv_kernel=config.conv_kernel,
        refresh_interval=config.refresh_interval,
        norm_eps=config.norm_eps,
    )


def _ska_paper(config: LayerSizes) -> SequenceMixer:
    return SpectralKoopmanAttention.paper(
        config.hidden_size, num_heads=config.num_heads, rank=config.rank, head_dim=config.head_dim
    )


def _mamba2(config: LayerSizes) -> SequenceMixer:
    return Mamba2(
        config.hidden_size,
        state_size=config.state_size,
        head_dim=config.mamba_head_dim,
        expand=config.expand,
        conv_kernel=config.conv_kernel,
        norm_eps=config.norm_eps,
    )


def _attention(config: LayerSizes) -> SequenceMixer:
    return SoftmaxAttention(
        config.hidden_size,
        num_heads=config.num_heads,
        head_dim=config.head_dim,
        conv_kernel=config.conv_kernel,
        rope_theta=config.rope_theta,
    )


PEERS = {
    "linear_attention": "echo_ska.nn.peers.linear_attention.LinearAttention",
    "delta_net": "echo_ska.nn.peers.delta.DeltaNet",
    "gated_delta_net": "echo_ska.nn.peers.delta.GatedDeltaNet",
    "gla": "echo_ska.nn.peers.gla.GatedLinearAttention",
    "rwkv7": "echo_ska.nn.peers.rwkv7.RWKV7",
}
"""SKA's peers, for comparisons: each is imported when the first model asks for it."""

PEERS_AT_HAND: dict[str, Callable[..., SequenceMixer]] = {}
"""Those that are imported. A file that `echo-ska export` writes holds its own model's and puts them here."""


def _peer(name: str, config: LayerSizes) -> SequenceMixer:
    if name not in PEERS_AT_HAND:
        module, _, class_name = PEERS[name].rpartition(".")
        try:
            PEERS_AT_HAND[name] = getattr(importlib.import_module(module), class_name)
        except ModuleNotFoundError as error:
            raise ValueError(f"{name} layers need the package echo-ska: pip install echo-ska") from error
    settings: dict[str, Any] = {
        "num_heads": config.num_heads,
        "rank": config.rank,
        "head_dim": config.head_dim,
        "conv_kernel": config.conv_kernel,
        "norm_eps": config.norm_eps,
    }
    return PEERS_AT_HAND[name](config.hidden_size, **settings)


MIXERS: dict[str, Callable[[LayerSizes], SequenceMixer]] = {
    "mamba2": _mamba2,
    "ska": _ska,
    "ska-paper": _ska_paper,
    "full_attention": _attention,
    **{name: functools.partial(_peer, name) for name in PEERS},
}

FEED_FORWARDS: dict[str, Callable[[LayerSizes], nn.Module | None]] = {
    "swiglu": lambda config: SwiGLU(config.hidden_size, config.intermediate_size),
    "koopman": lambda config: KoopmanMLP(config.hidden_size, config.intermediate_size),
    "koopman-gated": lambda config: KoopmanMLP(config.hidden_size, config.intermediate_size, gated=True),
    "none": lambda config: None,
}
