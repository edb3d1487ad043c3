"""The op: `spectral_koopman_attention`, its state, decoding in place, folded readouts, and the value checks' switch."""

from echo_ska.algebra import SufficientStatistics
from echo_ska.ops.arguments import set_value_checks
from echo_ska.ops.attention import spectral_koopman_attention
from echo_ska.ops.decoding import DecodingState, advance, decode_step
from echo_ska.ops.readout import folded_readout, folded_readouts
from echo_ska.ops.state import RecurrentState

__all__ = [
    "DecodingState",
    "RecurrentState",
    "SufficientStatistics",
    "advance",
    "decode_step",
    "folded_readout",
    "folded_readouts",
    "set_value_checks",
    "spectral_koopman_attention",
]
