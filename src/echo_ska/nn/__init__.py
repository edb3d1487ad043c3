"""Layers: sequence mixers behind one protocol, feed-forward layers, and the block that joins them."""

from echo_ska.nn.attention import KeyValueState, SoftmaxAttention
from echo_ska.nn.block import Block
from echo_ska.nn.convolution import ShortConvolution
from echo_ska.nn.cross_entropy import LinearCrossEntropy, linear_cross_entropy
from echo_ska.nn.feed_forward import KoopmanMLP, SwiGLU
from echo_ska.nn.mamba2 import Mamba2, Mamba2State
from echo_ska.nn.mixer import MixerState, SequenceMixer
from echo_ska.nn.projections import QueryKeyValue
from echo_ska.nn.ska import SpectralKoopmanAttention, SpectralKoopmanState

__all__ = [
    "Block",
    "KeyValueState",
    "KoopmanMLP",
    "LinearCrossEntropy",
    "Mamba2",
    "Mamba2State",
    "MixerState",
    "QueryKeyValue",
    "SequenceMixer",
    "ShortConvolution",
    "SoftmaxAttention",
    "SpectralKoopmanAttention",
    "SpectralKoopmanState",
    "SwiGLU",
    "linear_cross_entropy",
]
