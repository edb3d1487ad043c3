"""Taking tokens back, by `crop` and in Hugging Face's ways to decode with drafts."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import transformers
from packaging.version import Version
from small_models import KINDS, VOCABULARY, ids, small_model

from echo_ska.models import EchoCache
from echo_ska.models.rollback import FARTHEST_TOKENS, RECENT_TOKENS


@pytest.fixture(params=KINDS)
def model(request):
    return small_model(request.param)


def recording(model, **settings):
    cache = EchoCache(model.config)
    cache.activate_past_recording(**settings)
    return cache


@torch.no_grad()
def read(model, cache, *calls):
    """Read these tokens [B, T], a call each; the logits of the last call."""
    for tokens in calls:
        logits = model(tokens, past_key_values=cache, use_cache=True).logits
    return logits


def one_by_one(tokens):
    return tokens.split(1, dim=1)


def states(cache):
    """All tensors of all layers, in the form that every state can take."""
    return [
        {}
        if layer.state is None
        else {name: tensor.clone() for name, tensor in layer.state.compact().tensors().items()}
        for layer in cache.layers
    ]


def assert_equal(cache, other, tolerance=0.0):
    assert cache.get_seq_length() == other.get_seq_length()
    for found, expected in zip(states(cache), states(other), strict=True):
        assert found.keys() == expected.keys()
        for name, tensor in found.items():
            if tolerance == 0.0 or not tensor.is_floating_point():
                assert torch.equal(tensor, expected[name]), name
            else:
                assert float((tensor - expected[name]).abs().max()) <= tolerance * float(tensor.abs().max() + 1), name


def test_tokens_of_a_call_are_taken_back_bit_for_bit(model):
    """The rest of a draft is the state of a call with the rest of it alone."""
    prompt, draft = ids(2, 20), ids(2, 9, seed=2)
    cache, never = recording(model), EchoCache(model.config)
    read(model, cache, prompt)
    cache.crop(0)
    read(model, cache, draft)
    cache.crop(-4)
    read(model, never, prompt, draft[:, :5])
    assert_equal(cache, never)
    follow = ids(2, 1, seed=3)
    assert torch.equal(read(model, cache, follow), read(model, never, follow))


def test_a_whole_draft_is_taken_back_bit_for_bit(model):
    prompt = ids(2, 20)
    for draft in ((ids(2, 1, seed=2),), (ids(2, 7, seed=2),), one_by_one(ids(2, 5, seed=2))):
        cache, never = recording(model), EchoCache(model.config)
        for each in (cache, never):
            read(model, each, prompt, *one_by_one(ids(2, 3)))
        cache.crop(0)
        read(model, cache, *draft)
        cache.crop(-sum(tokens.shape[1] for tokens in draft))
        assert_equal(cache, never)
        follow = one_by_one(ids(2, 9, seed=3))
        assert torch.equal(read(model, cache, *follow), read(model, never, *follow))


@pytest.mark.parametrize("removed", [1, 5, 11, 12, 29, 32])
def test_steps_are_taken_back(model, removed):
    tokens = ids(2, 32)
    cache, never = recording(model), EchoCache(model.config)
    read(model, cache, tokens[:, :20], *one_by_one(tokens[:, 20:]))
    cache.crop(-removed)
    if removed < 32:
        read(model, never, tokens[:, : 32 - removed])
        assert_equal(cache, never, 1e-5)
    else:
        assert_equal(cache, never)
    follow = ids(2, 6, seed=4)
    found = read(model, cache, follow)
    assert torch.allclose(found, read(model, never, follow), atol=1e-4)


def test_what_is_kept_is_bounded_and_reaches_far_enough(model):
    """Whatever the calls, `tokens` tokens can be taken back, from at most three states and a bounded record."""
    cache, never = recording(model, tokens=40), EchoCache(model.config)
    lengths = [300, 1, 1, 1, 39, 40, 41, *[1] * 60, 7, 90, *[1] * 39]
    tokens = ids(1, sum(lengths))
    cache._rollback.recent = 40  # less than anybody is promised, so that the bounds are reached
    begin = 0
    for length in lengths:
        read(model, cache, tokens[:, begin : begin + length])
        begin += length
        rollback = cache.recorder()
        assert rollback.farthest(begin) >= min(40, begin)
        assert len(rollback._points) <= 3
        read_again = [inputs for _, inputs, _ in rollback._read]
        assert sum(inputs.shape[1] for inputs in read_again) <= 4 * 40 + 1
        assert all(inputs.untyped_storage().nbytes() <= 100 * inputs[:, :1].nbytes for inputs in read_again)
    cache.crop(-40)
    read(model, never, tokens[:, : begin - 40])
    assert_equal(cache, never, 1e-5)


def test_everything_since_a_crop_can_be_taken_back(model):
    tokens = ids(1, 700)
    cache, never = recording(model), EchoCache(model.config)
    read(model, cache, tokens[:, :50])
    cache.crop(0)
    read(model, cache, tokens[:, 50:660], tokens[:, 660:])
    cache.crop(-645)
    read(model, never, tokens[:, :55])
    assert_equal(cache, never, 1e-5)


def test_a_crop_falls_out_of_reach_in_the_end():
    model = small_model("ssm")
    cache = recording(model)
    read(model, cache, ids(1, 10))
    cache.crop(0)
    for _ in range(FARTHEST_TOKENS // 200 + 1):
        read(model, cache, ids(1, 200))
    assert cache.recorder().farthest(cache.get_seq_length()) <= 3 * RECENT_TOKENS


@torch.no_grad()
def test_a_long_call_is_read_in_two(model):
    tokens, mask = ids(2, 400), torch.ones(2, 400, dtype=torch.long)
    mask[0, :30] = 0
    cache = recording(model)
    found = model(tokens, attention_mask=mask, past_key_values=cache, use_cache=True, output_hidden_states=True)
    whole = model(tokens, attention_mask=mask, use_cache=False, output_hidden_states=True)
    assert torch.allclose(found.logits, whole.logits, atol=1e-4)
    assert len(found.hidden_states) == len(whole.hidden_states)
    for one, other in zip(found.hidden_states, whole.hidden_states, strict=True):
        assert torch.allclose(one, other, atol=1e-4)
    assert cache.recorder().farthest(400) == RECENT_TOKENS
    short = model(tokens, past_key_values=recording(model), use_cache=True, return_dict=False)
    assert torch.allclose(short[0], model(tokens, use_cache=False).logits, atol=1e-4)


@torch.no_grad()
def test_padding_is_taken_back_too(model):
    tokens, mask = ids(2, 30), torch.ones(2, 30, dtype=torch.long)
    mask[0, :12] = 0
    cache, never = recording(model), EchoCache(model.config)
    model(tokens, attention_mask=mask, past_key_values=cache, use_cache=True)
    cache.crop(-9)
    model(tokens[:, :21], attention_mask=mask[:, :21], past_key_values=never, use_cache=True)
    assert_equal(cache, never)


def test_picked_and_repeated_rows_can_be_taken_back(model):
    tokens = ids(3, 30)
    cache = recording(model)
    read(model, cache, tokens[:, :20], *one_by_one(tokens[:, 20:]))
    cache.reorder_cache(torch.tensor([2, 0, 1]))
    cache.batch_select_indices(torch.tensor([0, 2]))
    cache.batch_repeat_interleave(2)
    cache.crop(-7)
    never = EchoCache(model.config)
    read(model, never, tokens[[2, 2, 1, 1], :23])
    assert_equal(cache, never, 1e-5)


def test_a_copy_takes_tokens_back_on_its_own(model):
    tokens = ids(2, 30)
    cache = recording(model)
    read(model, cache, tokens[:, :20], *one_by_one(tokens[:, 20:]))
    fork = copy.deepcopy(cache)
    before = states(cache)
    fork.crop(-8)
    never = EchoCache(model.config)
    read(model, never, tokens[:, :22])
    assert_equal(fork, never, 1e-5)
    for found, expected in zip(states(cache), before, strict=True):
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_cache_that_nobody_asked_keeps_nothing(model):
    cache = EchoCache(model.config)
    read(model, cache, ids(2, 20), *one_by_one(ids(2, 3)))
    assert not cache._rollback._points
    assert not cache._rollback._read
    assert not any(layer._shared for layer in cache.layers)
    cache.crop(0)
    with pytest.raises(ValueError, match=r"crop\(-1\) cannot take back what was not recorded: call activate_past_rec"):
        cache.crop(-1)
    assert cache.get_seq_length() == 23


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        (5, "crop takes the number of tokens to remove as a negative one, got 5"),
        (-301, r"crop\(-301\) goes back too far: 256 of the 300 tokens read can be taken back"),
        (-257, r"crop\(-257\) goes back too far: 256 of the 300 tokens read can be taken back"),
    ],
)
def test_what_cannot_be_taken_back_is_refused(removed, message):
    model = small_model("ssm+ska")
    cache = recording(model)
    read(model, cache, ids(1, 300))
    before = states(cache)
    with pytest.raises(ValueError, match=message):
        cache.crop(removed)
    for found, expected in zip(states(cache), before, strict=True):
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        cache.activate_past_recording(0)


def test_reading_again_that_fails_leaves_the_cache_as_it_was(model, monkeypatch):
    cache = recording(model)
    read(model, cache, ids(1, 20))
    before = states(cache)

    def broken(*arguments, **keywords):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model.model, "forward", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        cache.crop(-3)
    monkeypatch.undo()
    assert cache.get_seq_length() == 20
    for found, expected in zip(states(cache), before, strict=True):
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    cache.crop(-3)
    assert cache.get_seq_length() == 17


def test_a_record_outlives_no_model_and_no_gap():
    model = small_model("ssm+ska")
    cache = recording(model)
    read(model, cache, ids(1, 20))
    for layer in cache.layers:
        layer.record_past = False  # as Hugging Face does when it hands a cache back
    read(model, cache, ids(1, 5))
    cache.activate_past_recording()
    read(model, cache, ids(1, 4))
    with pytest.raises(ValueError, match="4 of the 29 tokens read can be taken back"):
        cache.crop(-5)
    model(ids(1, 5), past_key_values=cache, cu_seqlens=torch.tensor([0, 5]), use_cache=True)
    with pytest.raises(ValueError, match="0 of the 34 tokens read can be taken back"):
        cache.crop(-1)
    read(model, cache, ids(1, 4))
    del model
    with pytest.raises(ValueError, match="the model that read into this cache is gone"):
        cache.crop(-1)


@pytest.mark.parametrize("drafted", [1, 4, 10, 300])
def test_prompt_lookup_gives_the_greedy_tokens(model, drafted):
    prompt = ids(1, 6).repeat(1, 4)  # what was said before is a draft of what comes
    expected = model.generate(prompt, max_new_tokens=60, do_sample=False)
    found = model.generate(prompt, max_new_tokens=60, do_sample=False, prompt_lookup_num_tokens=drafted)
    assert torch.equal(found, expected)


def test_prompt_lookup_over_a_long_prompt(model):
    prompt = ids(1, 90).repeat(1, 4)
    settings = {"max_new_tokens": 20, "do_sample": False}
    found = model.generate(prompt, prompt_lookup_num_tokens=5, **settings)
    assert torch.equal(found, model.generate(prompt, **settings))


class Rejections:
    """Counts what the drafts of a model's caches lose."""

    def __init__(self, monkeypatch):
        self.removed = []
        crop = EchoCache.crop
        monkeypatch.setattr(
            EchoCache, "crop", lambda cache, number: (self.removed.append(number), crop(cache, number))[1]
        )


def draft_always(assistant, tokens, schedule="constant"):
    """Have an assistant write so many tokens a draft, however sure it is of them."""
    assistant.generation_config.num_assistant_tokens = tokens
    assistant.generation_config.num_assistant_tokens_schedule = schedule
    assistant.generation_config.assistant_confidence_threshold = 0.0


@pytest.mark.parametrize("helper", ["itself", "near", "other"])
@pytest.mark.parametrize("schedule", ["constant", "heuristic"])
def test_an_assistant_gives_the_greedy_tokens(model, helper, schedule, monkeypatch):
    assistant = copy.deepcopy(model) if helper != "other" else small_model("ssm", seed=5)
    if helper == "near":
        with torch.no_grad():
            assistant.lm_head.weight.add_(0.02 * torch.randn_like(assistant.lm_head.weight))
    draft_always(assistant, 6, schedule)
    prompt = ids(1, 9)
    expected = model.generate(prompt, max_new_tokens=40, do_sample=False)
    rejections = Rejections(monkeypatch)
    found = model.generate(prompt, max_new_tokens=40, do_sample=False, assistant_model=assistant)
    assert torch.equal(found, expected)
    assert rejections.removed
    if helper == "other":
        assert min(rejections.removed) < 0


def test_a_draft_longer_than_what_is_kept_anyway_can_be_rejected(model, monkeypatch):
    assistant = small_model("ssm", seed=5)
    draft_always(assistant, 300)
    prompt = ids(1, 9)
    expected = model.generate(prompt, max_new_tokens=320, do_sample=False)
    rejections = Rejections(monkeypatch)
    found = model.generate(prompt, max_new_tokens=320, do_sample=False, assistant_model=assistant)
    assert torch.equal(found, expected)
    assert min(rejections.removed) < -RECENT_TOKENS


def test_drafts_that_hold_save_calls(model):
    assistant = copy.deepcopy(model)
    draft_always(assistant, 6)
    lengths = []
    model.model.register_forward_hook(lambda *given: lengths.append(given[-1].last_hidden_state.shape[1]))
    model.generate(ids(1, 9), max_new_tokens=35, do_sample=False, assistant_model=assistant)
    assert lengths == [9 + 6, 7, 7, 7, 7]  # seven tokens a call, and nothing read twice


@pytest.mark.parametrize("given", ["all tokens", "the new tokens"])
@pytest.mark.parametrize("seen", [4, 17])  # fewer and more tokens than are new
def test_drafts_are_judged_on_a_cache_of_ones_own(model, given, seen):
    if given == "the new tokens" and Version(transformers.__version__) < Version("5.23"):
        pytest.skip("transformers before 5.23 cuts the attention mask of a draft to the tokens given")
    prompt = ids(1, 7).repeat(1, 3)
    cache = model.prefill(prompt[:, :seen]).past_key_values
    settings = {"max_new_tokens": 20, "do_sample": False}
    expected = model.generate(prompt, **settings)
    inputs = prompt if given == "all tokens" else prompt[:, seen:]
    mask = torch.ones_like(prompt)
    found = model.generate(inputs, attention_mask=mask, past_key_values=cache, prompt_lookup_num_tokens=4, **settings)
    assert torch.equal(found[:, inputs.shape[1] :], expected[:, 21:])
    assert cache.get_seq_length() == 40
    follow = torch.cat([expected, ids(1, 3)], dim=1)
    assert torch.equal(model.generate(follow, past_key_values=cache, **settings), model.generate(follow, **settings))


@pytest.mark.parametrize("given", ["all tokens", "the new tokens"])
@pytest.mark.parametrize("new", [1, 3])
def test_drafts_are_judged_where_what_was_read_was_padded(model, given, new):
    if given == "the new tokens" and Version(transformers.__version__) < Version("5.23"):
        pytest.skip("transformers before 5.23 cuts the attention mask of a draft to the tokens given")
    prompt = ids(1, 3).repeat(1, 5)
    mask = torch.ones_like(prompt)
    mask[:, :2] = 0
    seen = prompt.shape[1] - new
    cache = model.prefill(prompt[:, :seen], attention_mask=mask[:, :seen]).past_key_values
    settings = {"max_new_tokens": 8, "do_sample": False}
    expected = model.generate(prompt, attention_mask=mask, **settings)[:, -8:]
    inputs = prompt if given == "all tokens" else prompt[:, seen:]
    found = model.generate(inputs, attention_mask=mask, past_key_values=cache, prompt_lookup_num_tokens=4, **settings)
    assert torch.equal(found[:, -8:], expected)


@pytest.mark.skipif(Version(transformers.__version__) < Version("5.23"), reason="it takes no new tokens alone there")
def test_drafts_on_padding_among_new_tokens_alone_are_refused():
    model, prompt = small_model("ssm+ska"), ids(1, 12)
    mask = torch.ones_like(prompt)
    mask[:, 6] = 0
    cache = model.prefill(prompt[:, :5]).past_key_values
    with pytest.raises(ValueError, match="padding among new tokens cannot be told where drafts are judged"):
        model.generate(
            prompt[:, 5:], attention_mask=mask, past_key_values=cache, prompt_lookup_num_tokens=4, max_new_tokens=4
        )
    assert cache.get_seq_length() == 5


def test_sampled_drafts_stay_in_the_vocabulary(model):
    torch.manual_seed(0)
    found = model.generate(
        ids(1, 6).repeat(1, 4), max_new_tokens=30, do_sample=True, prompt_lookup_num_tokens=5, top_k=10
    )
    assert found.shape == (1, 54)
    assert int(found.max()) < VOCABULARY


def test_a_cache_is_pickled_without_what_crop_needs():
    model = small_model("ssm+ska")
    for cache in (EchoCache(model.config), recording(model)):
        read(model, cache, ids(1, 12), ids(1, 3))
        again = pickle.loads(pickle.dumps(cache))
        assert torch.equal(read(model, again, ids(1, 5)), read(model, copy.deepcopy(cache), ids(1, 5)))
    with pytest.raises(ValueError, match="goes back too far"):
        pickle.loads(pickle.dumps(cache)).crop(-2)
    fork = copy.deepcopy(cache)  # which keeps the record
    fork.crop(-2)
    assert fork.get_seq_length() == 13


@pytest.mark.parametrize("new", [EchoCache, lambda config: recording(small_model("ssm+ska"))])
def test_a_cache_with_gradients_is_forked(new):
    model = small_model("ssm+ska")
    cache = new(model.config)
    model(ids(1, 7), past_key_values=cache, use_cache=True)
    fork = copy.deepcopy(cache)
    gradients = []
    for each in (cache, fork):
        loss = model(ids(1, 4), past_key_values=each, use_cache=True).logits.square().sum()
        gradients.append(torch.autograd.grad(loss, model.model.embed_tokens.weight, retain_graph=True)[0])
    assert torch.equal(*gradients)
    assert gradients[0].abs().sum() > 0
