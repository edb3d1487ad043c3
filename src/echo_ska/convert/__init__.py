"""Converting Hugging Face decoders: softmax attention out, SKA in, and what that loses and gains."""

from echo_ska.convert.attention import ReplacedAttention
from echo_ska.convert.replace import Replacement, replace_attention
from echo_ska.convert.saved import load_converted

__all__ = ["ReplacedAttention", "Replacement", "load_converted", "replace_attention"]
