"""SKA inside the hosts: caches, padding and generation."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from host_models import HOSTS, host, tokens
from transformers import DynamicCache, StaticCache

from echo_ska.convert import load_converted, replace_attention
from echo_ska.convert.measure import cache_bytes

CHOICES = {"all": "all", "one": [1], "two": [0, 1]}
GREEDY = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}


def converted(name, layers="all", **settings):
    model = host(name)
    return model, replace_attention(model, CHOICES.get(layers, layers), **{"rank": 6, **settings})


@pytest.mark.parametrize("layers", CHOICES)
@pytest.mark.parametrize("name", HOSTS)
@torch.no_grad()
def test_any_split_into_calls_gives_the_uncached_logits(name, layers):
    model, _ = converted(name, layers)
    ids = tokens(2, 20)
    wanted = model(ids, use_cache=False).logits
    cache, found = DynamicCache(config=model.config), []
    for part in ids.split([7, 1, 5, 1, 1, 5], dim=1):
        found.append(model(part, past_key_values=cache, use_cache=True).logits)
    assert torch.allclose(torch.cat(found, dim=1), wanted, atol=1e-4)
    assert cache.get_seq_length() == 20


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("layers", CHOICES)
@pytest.mark.parametrize("name", HOSTS)
@torch.no_grad()
def test_padding_changes_nothing(name, layers, attention):
    model, _ = converted(name, layers)
    model.config._attn_implementation = attention
    ids = tokens(2, 14)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    padded = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    assert torch.allclose(padded[:1, 5:], model(ids[:1, 5:], use_cache=False).logits, atol=1e-4)
    assert torch.allclose(padded[1:], model(ids[1:], use_cache=False).logits, atol=1e-4)
    right = model(ids, attention_mask=mask.flip(1), use_cache=False).logits
    assert torch.allclose(right[:1, :9], model(ids[:1, :9], use_cache=False).logits, atol=1e-4)


@pytest.mark.parametrize("layers", CHOICES)
@pytest.mark.parametrize("name", HOSTS)
@torch.no_grad()
def test_generation_is_that_without_a_cache(name, layers):
    model, _ = converted(name, layers)
    ids = tokens(2, 12)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    for settings in ({}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}):
        uncached = model.generate(ids, attention_mask=mask, use_cache=False, **GREEDY, **settings)
        cached = model.generate(ids, attention_mask=mask, **GREEDY, **settings)
        assert torch.equal(cached, uncached), settings
    greedy = model.generate(ids, attention_mask=mask, **GREEDY)
    assert torch.equal(model.generate(ids, attention_mask=mask, prefill_chunk_size=5, **GREEDY), greedy)
    assert torch.equal(greedy[0, 12:], model.generate(ids[:1, 5:], **GREEDY)[0, 7:])  # left padding is exact


@torch.no_grad()
def test_a_dialogue_goes_on_from_its_cache():
    model, _ = converted("llama", "one")
    cache = DynamicCache(config=model.config)
    first = model.generate(tokens(1, 9), past_key_values=cache, **GREEDY)
    fork = copy.deepcopy(cache)
    dialogue = torch.cat([first, tokens(1, 4, seed=1)], dim=1)
    second = model.generate(dialogue, past_key_values=cache, **GREEDY)
    assert torch.equal(second, model.generate(dialogue, **GREEDY))
    assert torch.equal(second, model.generate(dialogue, past_key_values=fork, **GREEDY))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@torch.no_grad()
def test_the_cache_grows_by_what_is_left_alone(name):
    for layers in ("all", "one"):
        model, report = converted(name, layers)
        original = host(name)
        for length in (10, 50):
            after = model(tokens(1, length), use_cache=True).past_key_values
            before = original(tokens(1, length), use_cache=True).past_key_values
            assert report.cache_bytes(length) == (cache_bytes(before), cache_bytes(after))
        if layers == "all":
            assert report.kept_bytes_per_token == 0


@torch.no_grad()
def test_states_of_layers_replaced_before_are_counted():
    model = host("llama")
    replace_attention(model, [0], rank=5)
    before = copy.deepcopy(model)
    report = replace_attention(model, [2], rank=6)
    for length in (10, 50):
        caches = [each(tokens(1, length), use_cache=True).past_key_values for each in (before, model)]
        assert report.cache_bytes(length) == tuple(map(cache_bytes, caches))


@torch.no_grad()
def test_masks_of_a_wholly_replaced_model_do_not_grow():
    """A mask over all tokens read would need memory for them, though nothing looks at it."""
    model, _ = converted("llama")
    cache = DynamicCache(config=model.config)
    model(tokens(2, 40), past_key_values=cache, use_cache=True)
    seen = []
    layer = model.model.layers[0].self_attn
    layer.register_forward_pre_hook(
        lambda module, arguments, settings: seen.append(settings["attention_mask"]), with_kwargs=True
    )
    mask = torch.ones(2, 43, dtype=torch.int64)
    mask[0, :41] = 0
    model(tokens(2, 3), attention_mask=mask, past_key_values=cache, use_cache=True)
    assert seen[0].shape == (2, 1, 3, 3)


def test_what_no_state_can_give_is_refused_in_one_sentence():
    model, _ = converted("llama")
    ids = tokens(2, 8)
    packed = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])
    with pytest.raises(ValueError, match=r"must be a padding mask.*rows of their own"):
        model(ids, position_ids=packed, use_cache=False)  # Hugging Face makes a mask of them
    with pytest.raises(ValueError, match="give each packed sequence a row of its own"):
        model(ids, position_ids=packed, use_cache=True)  # and here none
    with pytest.raises(ValueError, match="give each packed sequence a row of its own"):
        model(ids, position_ids=torch.tensor([[0, 0, 1, 2, 3, 4, 5, 6]]), use_cache=True)
    with pytest.raises(ValueError, match="cu_seq_lens_q packs sequences"):
        model(ids, cu_seq_lens_q=torch.tensor([0, 3, 8]), use_cache=False)
    window = torch.ones(8, 8).tril().triu(-2).bool().expand(2, 1, 8, 8)
    with pytest.raises(ValueError, match="must be a padding mask"):
        model(ids, attention_mask=window, use_cache=False)
    with pytest.raises(ValueError, match="attention_mask differs by head"):
        model(ids, attention_mask=window.expand(2, 4, 8, 8), use_cache=False)
    with pytest.raises(ValueError, match="must be a DynamicCache, got StaticCache"):
        model(ids, past_key_values=StaticCache(config=model.config, max_cache_len=9), use_cache=True)
    filled = host("llama")(ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match=r"holds keys and values in layer 0, .* another model's"):
        model(ids, past_key_values=filled, use_cache=True)
    with pytest.raises(ValueError, match="cannot take tokens back"):
        model.generate(ids[:1].repeat(1, 4), prompt_lookup_num_tokens=3, **GREEDY)


@pytest.mark.parametrize("name", HOSTS)
def test_attention_weights_are_refused(name, tmp_path):
    model = host(name)
    replace_attention(model, [1], rank=6)
    replace_attention(model, [2], rank=6)
    ids = tokens(1, 6)
    model.save_pretrained(tmp_path)
    for each in (model, load_converted(tmp_path), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        each.set_attn_implementation("eager")
        with pytest.raises(ValueError, match="has no attention weights: leave output_attentions out"):
            each(ids, output_attentions=True)
        with pytest.raises(ValueError, match="leave output_attentions out"):
            each.base_model(ids, output_attentions=True)
        with pytest.raises(ValueError, match="leave output_attentions out"):
            each.generate(ids, output_attentions=True, return_dict_in_generate=True, **GREEDY)
        assert each(ids, output_attentions=False).logits.shape[:2] == (1, 6)
        each.config.output_attentions = True
        with pytest.raises(ValueError, match="leave output_attentions out"):
            each(ids)
        assert len(each.base_model._forward_pre_hooks) == 1


def test_gradients_flow_through_every_parameter_in_training_and_checkpointing():
    for checkpointing in (False, True):
        model, _ = converted("llama", "two")
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        ids = tokens(2, 12)
        model(ids, labels=ids).loss.backward()
        missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
        assert not missing


@torch.no_grad()
def test_half_precision_runs_and_keeps_what_steers_solves_in_float32():
    for output_norm in (True, False):
        model = host("qwen2").to(torch.bfloat16)
        replace_attention(model, "every 2nd", output_norm=output_norm)
        mixer = model.model.layers[1].self_attn.mixer
        assert mixer.raw_ridge.dtype == torch.float32
        assert mixer.o_proj.weight.dtype == torch.bfloat16
        ids = tokens(1, 12)
        logits = model(ids, use_cache=False).logits
        assert logits.dtype == torch.bfloat16
        assert logits.isfinite().all()
        assert model.generate(ids, **GREEDY).shape == (1, 20)
