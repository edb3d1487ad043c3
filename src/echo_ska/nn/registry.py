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
    gate_dropout: float
    state_size: int
    expand: int
    conv_kernel: int
    intermediate_size: int | None
    rope_theta: float
    sliding_window: int
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
        gate_dropout=config.gate_dropout,
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
    "based": "echo_ska.nn.peers.based.BasedAttention",
    "mesa_net": "echo_ska.nn.peers.mesa_net.MesaNet",
    "mamba3": "echo_ska.nn.peers.mamba3.Mamba3",
    "mamba3-paper": "echo_ska.nn.peers.mamba3.mamba3_as_published",
    "sliding_attention": "echo_ska.nn.peers.sliding_attention.SlidingAttention",
}
"""SKA's peers, for comparisons: each is imported when the first model asks for it."""

_SPACES = {"state_size": "state_size", "head_dim": "mamba_head_dim", "expand": "expand", "norm_eps": "norm_eps"}
_SETTINGS: dict[str, dict[str, str]] = {
    "mamba3": {**_SPACES, "conv_kernel": "conv_kernel"},
    "mamba3-paper": _SPACES,
    "sliding_attention": {
        **{name: name for name in ("num_heads", "head_dim", "conv_kernel", "rope_theta")},
        "window": "sliding_window",
    },
}
"""What a peer is built with, and the field of the configuration that says it, where that is not `_USUAL_SETTINGS`."""
_USUAL_SETTINGS = {name: name for name in ("num_heads", "rank", "head_dim", "conv_kernel", "gate_dropout", "norm_eps")}

PEERS_AT_HAND: dict[str, Callable[..., SequenceMixer]] = {}
"""Those that are imported. A file that `echo-ska export` writes holds its own model's and puts them here."""


def _peer(name: str, config: LayerSizes) -> SequenceMixer:
    if name not in PEERS_AT_HAND:
        module, _, class_name = PEERS[name].rpartition(".")
        try:
            PEERS_AT_HAND[name] = getattr(importlib.import_module(module), class_name)
        except ModuleNotFoundError as error:
            raise ValueError(f"{name} layers need the package echo-ska: pip install echo-ska") from error
    fields = _SETTINGS.get(name, _USUAL_SETTINGS)
    settings: dict[str, Any] = {keyword: getattr(config, field) for keyword, field in fields.items()}
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
