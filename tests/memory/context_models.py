"""The smallest model of every layer kind, and what another process does with a saved context of one."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from echo_ska.memory import ContextState
from echo_ska.models import EchoConfig, EchoForCausalLM

KINDS = {
    "ssm": {"ska_layers": []},
    "ssm+attention": {"attention_layers": [1]},
    "ssm+ska": {"ska_layers": [1]},
    "refresh": {"ska_layers": [1], "refresh_interval": 8},
}
VOCAB = 50


def tiny(seed=0, **fields):
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_heads": 2,
        "rank": 6,
        "state_size": 4,
        "feed_forward": "none",
    }
    model = EchoForCausalLM(EchoConfig(**(sizes | fields))).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(8)  # untrained models hardly tell tokens apart
    return model


def ids(time, seed=1):
    return torch.randint(0, VOCAB, (time,), generator=torch.Generator().manual_seed(seed))


def continuation(model, state):
    """What follows a context: logits, logits while decoding, logits after reading on, and a greedy text."""
    text = state.generate(model, ids(3, seed=7), max_new_tokens=10, do_sample=False)
    decoded, cache = [], state.cache()
    with torch.no_grad():
        for token in [state.last_token, *text[0, :4].tolist()]:
            decoded.append(model(torch.tensor([[token]]), past_key_values=cache, use_cache=True).logits[0, -1])
    return {
        "logits": state.logits(model),
        "decoded": torch.stack(decoded),
        "read": ContextState.read(model, ids(21, seed=8), state).logits(model),
        "text": text,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    for folder in map(Path, sys.argv[1:]):
        model = EchoForCausalLM.from_pretrained(folder / "model").eval()
        save_file(continuation(model, ContextState.load(folder / "state", model)), folder / "continuation.safetensors")
