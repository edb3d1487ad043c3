"""A tiny byte-level model, and what it says by Hugging Face's generate."""

from __future__ import annotations

import torch

from echo_ska.models import EchoConfig, EchoForCausalLM, byte_tokenizer

SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_heads": 2, "rank": 8, "state_size": 8}
NAME = "tiny"
SYSTEM = {"role": "system", "content": "You answer in riddles, and never twice with the same one."}
QUESTION = {"role": "user", "content": "Who comes there?"}


def tiny(seed=0, **fields):
    """All three kinds of layers."""
    torch.manual_seed(seed)
    model = EchoForCausalLM(EchoConfig(**SIZES, **({"ska_layers": [1], "attention_layers": [2]} | fields))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # untrained models hardly tell tokens apart
    return model


def endless():
    """One for which the end token is never the likeliest."""
    model = tiny()
    with torch.no_grad():
        model.lm_head.weight[0] = 0
    return model


def chat_text(*messages):
    return byte_tokenizer().apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)


def greedy(model, text, tokens):
    """The ids that the model writes after `text`, up to the end token."""
    ids = torch.tensor([byte_tokenizer()(text)["input_ids"]])
    out = model.generate(ids, max_new_tokens=tokens, do_sample=False, eos_token_id=0, pad_token_id=0)
    written = out[0, ids.shape[1] :].tolist()
    return written[: written.index(0)] if 0 in written else written


def decoded(ids):
    return byte_tokenizer().decode(ids, skip_special_tokens=True)
