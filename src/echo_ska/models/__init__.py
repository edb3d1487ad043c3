"""Echo models in Hugging Face style; importing this registers them with the Auto classes.

`echo_ska.models.presets` has a table of the named models.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from echo_ska.models.cache_echo import EchoCache
from echo_ska.models.configuration_echo import EchoConfig
from echo_ska.models.loss import EchoCausalLMOutput
from echo_ska.models.modeling_echo import EchoForCausalLM, EchoModel
from echo_ska.models.presets import PRESETS, preset
from echo_ska.models.tokenization import byte_tokenizer, train_bpe

AutoConfig.register(EchoConfig.model_type, EchoConfig, exist_ok=True)
AutoModel.register(EchoConfig, EchoModel, exist_ok=True)
AutoModelForCausalLM.register(EchoConfig, EchoForCausalLM, exist_ok=True)

__all__ = [
    "PRESETS",
    "EchoCache",
    "EchoCausalLMOutput",
    "EchoConfig",
    "EchoForCausalLM",
    "EchoModel",
    "byte_tokenizer",
    "preset",
    "train_bpe",
]
