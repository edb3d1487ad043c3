"""Converting Hugging Face decoders: softmax attention out, SKA in, and what that loses and gains."""

from echo_ska.convert.attention import ReplacedAttention
from echo_ska.convert.distillation import Distillation, distil
from echo_ska.convert.replace import Replacement, replace_attention
from echo_ska.convert.saved import load_converted

__all__ = ["Distillation", "ReplacedAttention", "Replacement", "distil", "load_converted", "replace_attention"]
