"""The op: `spectral_koopman_attention`, its state, and the switch of its value checks."""

from echo_ska.algebra import SufficientStatistics
from echo_ska.ops.arguments import set_value_checks
from echo_ska.ops.attention import spectral_koopman_attention
from echo_ska.ops.state import RecurrentState

__all__ = ["RecurrentState", "SufficientStatistics", "set_value_checks", "spectral_koopman_attention"]
