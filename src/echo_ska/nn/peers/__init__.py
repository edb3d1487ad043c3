"""SKA's peers: other memories of fixed size, behind the same protocol and with the same aids."""

from echo_ska.nn.peers.base import LinearMixer, LinearState
from echo_ska.nn.peers.delta import DeltaNet, GatedDeltaNet
from echo_ska.nn.peers.linear_attention import LinearAttention

__all__ = ["DeltaNet", "GatedDeltaNet", "LinearAttention", "LinearMixer", "LinearState"]
