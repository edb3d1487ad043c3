"""Converting Hugging Face decoders: softmax attention out, SKA in, and what that loses and gains.

Importing this registers the converted decoders with the Auto classes.
"""

from echo_ska.convert.attention import ReplacedAttention
from echo_ska.convert.classes import converted_class
from echo_ska.convert.distillation import Distillation, distil
from echo_ska.convert.hosts import HOSTS
from echo_ska.convert.replace import Replacement, replace_attention
from echo_ska.convert.saved import load_converted

for _host in HOSTS:
    converted_class(_host)

__all__ = ["Distillation", "ReplacedAttention", "Replacement", "distil", "load_converted", "replace_attention"]
