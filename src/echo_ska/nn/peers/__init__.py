"""SKA's peers: other memories of fixed size, behind the same protocol and with the same aids."""

from echo_ska.nn.peers.base import LinearMixer, LinearState
from echo_ska.nn.peers.based import BasedAttention
from echo_ska.nn.peers.delta import DeltaNet, GatedDeltaNet
from echo_ska.nn.peers.gla import GatedLinearAttention
from echo_ska.nn.peers.linear_attention import LinearAttention
from echo_ska.nn.peers.mamba3 import Mamba3, Mamba3State
from echo_ska.nn.peers.mesa_net import MesaNet
from echo_ska.nn.peers.rwkv7 import RWKV7
from echo_ska.nn.peers.sliding_attention import SlidingAttention, SlidingState

__all__ = [
    "RWKV7",
    "BasedAttention",
    "DeltaNet",
    "GatedDeltaNet",
    "GatedLinearAttention",
    "LinearAttention",
    "LinearMixer",
    "LinearState",
    "Mamba3",
    "Mamba3State",
    "MesaNet",
    "SlidingAttention",
    "SlidingState",
]
