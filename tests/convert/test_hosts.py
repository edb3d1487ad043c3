"""The weights of every host in one form: attention computed from them is the host's own."""

from __future__ import annotations

import pytest
import torch
from host_models import HOSTS, SIZES, host
from transformers import (
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from echo_ska.convert.hosts import cache_bytes_per_token, decoder_layers, head_weights


@pytest.mark.parametrize("name", HOSTS)
@torch.no_grad()
def test_attention_from_the_weights_is_the_hosts_own(name):
    """One layer, at distance 0 and by hand: a single token attends to itself alone, two tokens share their weights."""
    blocks, attribute = decoder_layers(host(name))
    attention = getattr(blocks[1], attribute)
    weights = head_weights(attention)
    hidden = torch.randn(2, 2, 32)
    still = (torch.ones(1, 2, weights.query.shape[1]), torch.zeros(1, 2, weights.query.shape[1]))  # no rotation
    settings = {} if name == "gpt2" else {"position_embeddings": still}
    wanted = attention(hidden, attention_mask=None, **settings)[0]

    def heads(weight, bias):
        projected = torch.einsum("btd,hcd->bhtc", hidden, weight)
        return projected if bias is None else projected + bias[:, None]

    query, key = heads(weights.query, weights.query_bias), heads(weights.key, weights.key_bias)
    value = heads(weights.value, weights.value_bias)
    if name == "qwen3":  # up to a factor of token and head, which the norm itself decides
        query, key = (
            part / part.div(norm.weight).square().mean(-1, keepdim=True).sqrt()
            for part, norm in ((query, attention.q_norm), (key, attention.k_norm))
        )
    scores = query @ key.mT / weights.query.shape[1] ** 0.5
    scores = scores.masked_fill(torch.ones(2, 2).triu(1).bool(), -torch.inf)
    mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2) @ weights.output.T
    found = mixed if weights.output_bias is None else mixed + weights.output_bias
    assert torch.allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("name", HOSTS)
@torch.no_grad()
def test_bytes_of_a_token_are_those_that_the_cache_holds(name):
    model = host(name)
    blocks, attribute = decoder_layers(model)
    cache = DynamicCache(config=model.config)
    model(torch.ones(1, 7, dtype=torch.int64), past_key_values=cache, use_cache=True)
    for block, layer in zip(blocks, cache.layers, strict=True):
        assert layer.keys.nbytes + layer.values.nbytes == 7 * cache_bytes_per_token(getattr(block, attribute))


def test_other_models_are_refused_by_a_sentence_that_names_those_supported():
    other = GPTNeoXForCausalLM(
        GPTNeoXConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=9)
    )
    with pytest.raises(ValueError, match=r"LlamaForCausalLM.*Qwen3ForCausalLM, not in GPTNeoXForCausalLM"):
        decoder_layers(other)
    with pytest.raises(ValueError, match="not in Linear"):
        decoder_layers(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="not in LlamaModel"):
        decoder_layers(host("llama").model)


@pytest.mark.parametrize(
    "model",
    [
        lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=8)),
        lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=8, max_window_layers=1)),
    ],
)
def test_windows_are_refused(model):
    with pytest.raises(ValueError, match="sliding window"):
        decoder_layers(model())


def test_cross_attention_is_refused():
    config = GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=2, add_cross_attention=True)
    with pytest.raises(ValueError, match="attends to an encoder"):
        decoder_layers(GPT2LMHeadModel(config))
