"""A small model of every kind of layer, for the tests of Hugging Face's interfaces."""

from __future__ import annotations

import torch

from echo_ska.models import EchoConfig, EchoForCausalLM

KINDS = {
    "ssm": {"ska_layers": []},
    "ssm+attention": {"attention_layers": [1]},
    "ssm+ska": {"ska_layers": [1]},
    "refresh": {"ska_layers": [1], "refresh_interval": 8},
}
VOCABULARY = 50


def small_model(kind, seed=0, **fields):
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_heads": 2,
        "rank": 8,
        "state_size": 8,
    }
    model = EchoForCausalLM(EchoConfig(**(sizes | KINDS[kind] | fields))).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(8)  # untrained models hardly tell tokens apart
    return model


def ids(batch, time, seed=1):
    """[batch, time] tokens other than 0, which `generate` takes for padding wherever it is named as pad_token_id."""
    return torch.randint(1, VOCABULARY, (batch, time), generator=torch.Generator().manual_seed(seed))


def error(found, expected):
    """The largest difference, in units of the largest number expected."""
    return float((found.detach() - expected.detach()).abs().max() / expected.abs().max())
