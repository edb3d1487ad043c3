"""Decoding with the whole model: steps in place, caches that fork, prompts read in segments."""

from __future__ import annotations

import copy

import pytest
import torch

from echo_ska.models import EchoConfig, EchoForCausalLM
from echo_ska.models.segments import read_in_segments
from echo_ska.ops.decoding import DecodingState

KINDS = {
    "ssm": {"ska_layers": []},
    "ssm+attention": {"attention_layers": [1]},
    "ssm+ska": {"ska_layers": [1]},
    "peers": {
        "layer_types": ["linear_attention", "delta_net", "gated_delta_net", "gla", "rwkv7"],
        "num_hidden_layers": 5,
    },
    "refresh": {"ska_layers": [1], "refresh_interval": 8},
    "all": {"layer_types": ["mamba2", "ska", "attention", "ska"], "num_hidden_layers": 4, "ska_at_ends": True},
    "more peers": {
        "layer_types": ["based", "mesa_net", "mamba3", "mamba3-paper", "sliding_attention"],
        "num_hidden_layers": 5,
        "sliding_window": 8,
    },
}


@pytest.fixture(params=KINDS)
def model(request):
    return tiny(**KINDS[request.param])


def tiny(**fields):
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 3, "num_heads": 2, "rank": 8, "state_size": 8}
    model = EchoForCausalLM(EchoConfig(**(sizes | fields))).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(8)  # untrained models hardly tell tokens apart
    return model


def ids(batch, time, seed=1):
    return torch.randint(0, 50, (batch, time), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def decode(model, cache, tokens):
    """Logits [B, T, V] of `tokens`, one call each."""
    steps = [model(tokens[:, t : t + 1], past_key_values=cache, use_cache=True).logits for t in range(tokens.shape[1])]
    return torch.cat(steps, dim=1)


def memory_of(cache):
    return {
        (index, name): tensor.data_ptr()
        for index, layer in enumerate(cache.layers)
        for name, tensor in layer.state.tensors().items()
        if tensor.numel()
    }


def contents_of(cache):
    return [layer.state.clone().tensors() for layer in cache.layers]


def assert_unchanged(cache, contents):
    for layer, expected in zip(cache.layers, contents, strict=True):
        found = layer.state.tensors()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@torch.no_grad()
def test_decoding_equals_reading_everything_at_once(model):
    tokens = ids(2, 60)
    whole = model(tokens, use_cache=False).logits
    cache = model(tokens[:, :20], use_cache=True).past_key_values
    assert torch.allclose(decode(model, cache, tokens[:, 20:]), whole[:, 20:], atol=1e-4)
    assert cache.get_seq_length() == 60


@torch.no_grad()
def test_steps_update_the_states_in_place(model):
    cache = model(ids(2, 9), use_cache=True).past_key_values
    decode(model, cache, ids(2, 2))  # the first makes the forms that steps work on
    before = memory_of(cache)
    decode(model, cache, ids(2, 6))
    assert memory_of(cache) == before
    assert cache.get_seq_length() == 17


@torch.no_grad()
def test_calls_of_every_length_follow_each_other(model):
    tokens = ids(2, 40)
    whole = model(tokens, use_cache=False).logits
    logits, cache = [], None
    for part in tokens.split([1, 1, 1, 5, 1, 1, 7, 1, 22], dim=1):
        output = model(part, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        logits.append(output.logits)
    assert torch.allclose(torch.cat(logits, dim=1), whole, atol=1e-4)


@torch.no_grad()
def test_rows_of_unequal_length_decode_together(model):
    tokens, mask = ids(2, 30), torch.ones(2, 20, dtype=torch.long)
    mask[0, :7] = 0
    cache = model(tokens[:, :20], attention_mask=mask, use_cache=True).past_key_values
    found = decode(model, cache, tokens[:, 20:])
    assert torch.allclose(found[0], model(tokens[:1, 7:], use_cache=False).logits[0, 13:], atol=1e-4)
    assert torch.allclose(found[1], model(tokens[1:], use_cache=False).logits[0, 20:], atol=1e-4)


@torch.no_grad()
def test_a_copied_cache_goes_its_own_way(model):
    tokens = ids(2, 30)
    cache = model(tokens[:, :10], use_cache=True).past_key_values
    decode(model, cache, tokens[:, 10:15])
    fork = copy.deepcopy(cache)
    assert not set(memory_of(fork).values()) & set(memory_of(cache).values())
    contents = contents_of(fork)
    expected = decode(model, cache, tokens[:, 15:])
    assert_unchanged(fork, contents)
    assert fork.get_seq_length() == 15
    assert torch.equal(decode(model, fork, tokens[:, 15:]), expected)


@torch.no_grad()
def test_rows_are_picked_and_repeated_between_steps(model):
    tokens = ids(3, 30)
    cache = model(tokens[:, :10], use_cache=True).past_key_values
    decode(model, cache, tokens[:, 10:20])
    whole = model(tokens, use_cache=False).logits
    picks = [2, 0, 2]
    cache.reorder_cache(torch.tensor(picks))
    assert torch.allclose(decode(model, cache, tokens[picks, 20:25]), whole[picks, 20:25], atol=1e-4)
    cache.batch_select_indices(torch.tensor([1]))
    cache.batch_repeat_interleave(2)
    assert torch.allclose(decode(model, cache, tokens[[0, 0], 25:]), whole[[0, 0], 25:], atol=1e-4)


def test_beam_search_does_not_depend_on_the_cache(model):
    prompt = ids(2, 9)
    for settings in ({"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}):
        found, expected = (
            model.generate(prompt, max_new_tokens=12, do_sample=False, use_cache=cached, **settings)
            for cached in (True, False)
        )
        assert torch.equal(found, expected)


@pytest.mark.parametrize("chunk", [1, 4, 9, 100])
def test_generation_reads_its_prompt_in_chunks(model, chunk):
    prompt, mask = ids(2, 19), torch.ones(2, 19, dtype=torch.long)
    mask[0, :6] = 0
    settings = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(prompt, **settings)
    assert torch.equal(model.generate(prompt, prefill_chunk_size=chunk, **settings), expected)


def test_generation_goes_on_from_a_cache(model):
    prompt = ids(1, 30)
    expected = model.generate(prompt, max_new_tokens=8, do_sample=False)
    cache = model.prefill(prompt[:, :20], segment_length=7).past_key_values
    assert torch.equal(model.generate(prompt, past_key_values=cache, max_new_tokens=8, do_sample=False), expected)


@pytest.mark.parametrize("segment_length", [1, 7, 39, 40, 4096])
def test_prefill_gives_the_last_logits_and_the_cache(model, segment_length):
    tokens = ids(2, 50)
    with torch.no_grad():
        whole = model(tokens, use_cache=False).logits
    output = model.prefill(tokens[:, :25], segment_length=segment_length)
    output = model.prefill(tokens[:, 25:40], output.past_key_values, segment_length=segment_length)
    assert output.logits.shape == (2, 1, 50)
    assert torch.allclose(output.logits, whole[:, 39:40], atol=1e-4)
    assert torch.allclose(decode(model, output.past_key_values, tokens[:, 40:]), whole[:, 40:], atol=1e-4)


def test_prefill_in_training_mode_drops_nothing_at_random():
    layers = {"layer_types": ["mamba2", "ska", "attention", "mamba2"], "num_hidden_layers": 4}
    model, tokens = tiny(**layers, gate_dropout=0.5, mixer_dropout=[0.5, 0.5, 0.5, 0.0]), ids(2, 40)
    expected = model.prefill(tokens, segment_length=7)
    output = model.train().prefill(tokens, segment_length=7)
    assert torch.equal(output.logits, expected.logits)
    assert_unchanged(output.past_key_values, contents_of(expected.past_key_values))
    assert all(module.training for module in model.modules())


def test_prefill_takes_padding_on_the_left(model):
    tokens, mask = ids(2, 20), torch.ones(2, 20, dtype=torch.long)
    mask[0, :9] = 0
    output = model.prefill(tokens, attention_mask=mask, segment_length=6)
    with torch.no_grad():
        assert torch.allclose(output.logits[0], model(tokens[:1, 9:]).logits[0, -1:], atol=1e-4)
        assert torch.allclose(output.logits[1], model(tokens[1:]).logits[0, -1:], atol=1e-4)
    with pytest.raises(ValueError, match="is padding in some row: pad on the left"):
        model.prefill(tokens, attention_mask=mask.flip(1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": ids(2, 0)}, r"of at least one token, got \[2, 0\]"),
        ({"input_ids": ids(2, 5), "segment_length": 0}, "segment_length must be at least 1, got 0"),
        ({"input_ids": ids(2, 5), "attention_mask": torch.ones(2, 9)}, r"attention_mask must be \[2, 5\]"),
    ],
)
def test_prefill_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny().prefill(**arguments)


def test_segments_say_where_they_begin():
    model = tiny(ska_layers=[1])
    with torch.no_grad():
        read = list(read_in_segments(model, ids(2, 10), 4, more=lambda begin, end: {"logits_to_keep": end - begin}))
        whole = model(ids(2, 10)).logits
    assert [begin for begin, _ in read] == [0, 4, 8]
    assert torch.allclose(torch.cat([output.logits for _, output in read], dim=1), whole, atol=1e-5)


def test_a_cache_from_inference_mode_decodes_outside_of_it(model):
    tokens = ids(2, 20)
    with torch.inference_mode():
        cache = model(tokens[:, :8], use_cache=True).past_key_values
        for t in (8, 9):
            model(tokens[:, t : t + 1], past_key_values=cache)
    with torch.no_grad():
        expected = model(tokens, use_cache=False).logits[:, 10:]
    assert torch.allclose(decode(model, cache, tokens[:, 10:]), expected, atol=1e-4)
    with torch.inference_mode():
        model(tokens[:, :1], past_key_values=cache)


def test_with_gradients_no_state_is_changed_in_place(model):
    """Gradients flow through the states, so one token is read as several are."""
    tokens = ids(2, 9)
    cache = model(tokens[:, :8], use_cache=True).past_key_values
    states = [layer.state for layer in cache.layers]
    contents = contents_of(cache)
    logits = model(tokens[:, 8:], past_key_values=cache).logits
    for state, expected in zip(states, contents, strict=True):
        assert all(torch.equal(state.tensors()[name], tensor) for name, tensor in expected.items())
    logits.square().sum().backward()
    assert float(model.get_input_embeddings().weight.grad[tokens[0, 0]].abs().max()) > 0


@torch.no_grad()
def test_without_use_cache_a_cache_is_only_read(model):
    cache = model(ids(2, 9), use_cache=True).past_key_values
    decode(model, cache, ids(2, 3))
    contents = contents_of(cache)
    model(ids(2, 1), past_key_values=cache, use_cache=False)
    assert_unchanged(cache, contents)
    assert cache.get_seq_length() == 12


@torch.no_grad()
def test_hidden_states_and_hooks_see_decoding_too(model):
    tokens = ids(2, 9)
    whole = model(tokens, output_hidden_states=True, use_cache=False).hidden_states
    cache = model(tokens[:, :8], use_cache=True).past_key_values
    called = []
    hook = model.model.layers[1].register_forward_hook(lambda *_: called.append(1))
    last = model(tokens[:, 8:], past_key_values=cache, output_hidden_states=True).hidden_states
    hook.remove()
    assert called == [1]
    assert len(last) == len(whole)
    for found, expected in zip(last, whole, strict=True):
        assert torch.allclose(found, expected[:, 8:], atol=1e-4)


@torch.no_grad()
def test_a_cache_of_another_batch_is_refused_and_left_alone(model):
    cache = model(ids(2, 9), use_cache=True).past_key_values
    decode(model, cache, ids(2, 2))
    contents = contents_of(cache)
    with pytest.raises(ValueError, match="state is of another layer or batch"):
        model(ids(3, 1), past_key_values=cache)
    assert_unchanged(cache, contents)


@torch.no_grad()
def test_a_token_that_was_read_by_some_layers_only_spoils_the_cache(model, monkeypatch):
    cache = model(ids(1, 9), use_cache=True).past_key_values

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(model.model.layers[2].mixer, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model(ids(1, 1), past_key_values=cache)
    monkeypatch.undo()
    for tokens in (1, 4):
        with pytest.raises(ValueError, match="was interrupted, so some layers have read it and some have not"):
            model(ids(1, tokens), past_key_values=cache)
    cache.reset()
    assert torch.allclose(model(ids(1, 5), past_key_values=cache).logits, model(ids(1, 5)).logits, atol=1e-5)


@torch.no_grad()
def test_what_can_fail_fails_before_any_layer_has_read_the_token():
    model = tiny(ska_layers=[1])
    cache = model(ids(1, 9), use_cache=True).past_key_values
    decode(model, cache, ids(1, 2))
    state = cache.layers[1].state.recurrent
    assert isinstance(state, DecodingState)
    state.moments.fill_(float("nan"))
    state.position.fill_(1024)
    broken = copy.deepcopy(cache)
    before = broken.layers[0].state.ssm.clone()
    with pytest.raises(ArithmeticError, match="broken at batch row 0, head 0"):
        model(ids(1, 1), past_key_values=broken)
    assert torch.equal(broken.layers[0].state.ssm, before)
    assert broken.get_seq_length() == 11


@torch.no_grad()
def test_a_compact_cache_has_the_bytes_it_was_said_to_have_and_goes_on(model):
    tokens = ids(1, 50)
    cache = model(tokens[:, :10], use_cache=True).past_key_values
    decode(model, cache, tokens[:, 10:40])
    assert cache.nbytes >= model.state_bytes(40)
    cache.compact()
    assert cache.nbytes == model.state_bytes(40)
    expected = model(tokens, use_cache=False).logits[:, 40:]
    assert torch.allclose(decode(model, cache, tokens[:, 40:]), expected, atol=1e-4)
