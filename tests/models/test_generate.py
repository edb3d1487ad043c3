"""Hugging Face's `generate` on Echo: what any model of theirs does, over the kinds of layers.

What it does with a cache of steps (beams, chunks of a prompt, a cache to go on from) is in test_decoding.py, what it
does with drafts in test_rollback.py.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from small_models import KINDS, VOCABULARY, error, ids, small_model
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList, set_seed
from transformers.generation import BaseStreamer

from echo_ska.models import EchoCache

GREEDY = {"max_new_tokens": 12, "do_sample": False}


@pytest.fixture(params=KINDS)
def model(request):
    return small_model(request.param)


@torch.no_grad()
def logits_of(model, tokens):
    """Without a cache."""
    return model(tokens, use_cache=False).logits


@pytest.mark.parametrize(
    "lengths",
    [
        (1, 299),
        (299, 1),
        (150, 150),
        (3, 1, 296),
        (64, 64, 64, 64, 44),
        (7,) * 42 + (6,),
        (1,) * 10 + (200,) + (1,) * 90,
        (100, 1, 2, 4, 8, 16, 32, 64, 73),
    ],
    ids=lambda lengths: "+".join(map(str, lengths[:4])) + f" ({len(lengths)} calls)",
)
@torch.no_grad()
def test_any_split_of_a_prompt_gives_the_same_logits(model, lengths):
    tokens = ids(2, 300)
    assert sum(lengths) == 300
    cache, logits = EchoCache(model.config), []
    for begin, end in itertools.pairwise(itertools.accumulate(lengths, initial=0)):
        logits.append(model(tokens[:, begin:end], past_key_values=cache, use_cache=True).logits)
    assert error(torch.cat(logits, dim=1), logits_of(model, tokens)) < 1e-5


def test_left_padding_changes_no_logits(model):
    tokens, mask = ids(3, 40), torch.ones(3, 40, dtype=torch.long)
    paddings = (0, 7, 39)
    for row, padding in enumerate(paddings):
        mask[row, :padding] = 0
    settings = GREEDY | {"return_dict_in_generate": True, "output_logits": True, "pad_token_id": 0}
    together = model.generate(tokens, attention_mask=mask, **settings)
    for row, padding in enumerate(paddings):
        alone = model.generate(tokens[row : row + 1, padding:], **settings)
        assert torch.equal(together.sequences[row, 40:], alone.sequences[0, 40 - padding :])
        for found, expected in zip(together.logits, alone.logits, strict=True):
            assert error(found[row], expected[0]) < 1e-5


def test_a_chunk_may_be_padding_alone(model):
    tokens, mask = ids(1, 30), torch.ones(1, 30, dtype=torch.long)
    mask[0, :17] = 0
    settings = GREEDY | {"attention_mask": mask, "pad_token_id": 0}
    expected = model.generate(tokens[:, 17:], **GREEDY)[:, 13:]
    for chunk in (5, 8, 17):
        assert torch.equal(model.generate(tokens, prefill_chunk_size=chunk, **settings)[:, 30:], expected)


def test_sampling_with_a_seed_does_not_depend_on_the_cache(model):
    settings = {"do_sample": True, "top_k": 20, "top_p": 0.9, "temperature": 0.7, "max_new_tokens": 15}
    found = []
    for cached in (True, True, False):
        set_seed(3)
        found.append(model.generate(ids(2, 9), use_cache=cached, num_return_sequences=3, **settings))
    assert found[0].shape == (6, 24)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert len({tuple(row.tolist()) for row in found[0]}) > 2


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 4, "length_penalty": 0.5, "early_stopping": True, "eos_token_id": 7},
        {"num_beams": 2, "num_return_sequences": 2, "no_repeat_ngram_size": 2, "repetition_penalty": 1.3},
    ],
    ids=["with an end", "with penalties"],
)
def test_beams_and_their_scores_do_not_depend_on_the_cache(model, settings):
    settings = GREEDY | {"return_dict_in_generate": True, "output_scores": True, "pad_token_id": 0} | settings
    tokens, mask = ids(2, 10), torch.ones(2, 10, dtype=torch.long)
    mask[1, :4] = 0
    found, expected = (
        model.generate(tokens, attention_mask=mask, use_cache=cached, **settings) for cached in (True, False)
    )
    assert torch.equal(found.sequences, expected.sequences)
    assert torch.allclose(found.sequences_scores, expected.sequences_scores, atol=1e-5)
    assert torch.equal(found.beam_indices, expected.beam_indices)


def test_beam_sampling_runs_and_follows_its_seed(model):
    found = []
    for _ in range(2):
        set_seed(0)
        found.append(model.generate(ids(2, 9), num_beams=3, do_sample=True, max_new_tokens=8, num_return_sequences=2))
    assert torch.equal(*found)
    assert found[0].shape == (4, 17)


def test_embeddings_in_place_of_tokens(model):
    prompt = ids(2, 9)
    embedded = model.get_input_embeddings()(prompt).detach()
    expected = model.generate(prompt, **GREEDY)
    assert torch.equal(model.generate(inputs_embeds=embedded, **GREEDY), expected[:, 9:])
    assert torch.equal(model.generate(prompt, inputs_embeds=embedded, **GREEDY), expected)


def test_it_starts_from_a_first_token_of_its_own(model):
    found = model.generate(bos_token_id=3, **GREEDY)
    assert torch.equal(found, model.generate(torch.tensor([[3]]), **GREEDY))


@pytest.mark.parametrize("given", ["all tokens", "the new tokens"])
def test_turns_go_on_from_the_cache(model, given):
    dialogue, cache = ids(1, 8), EchoCache(model.config)
    for turn in range(3):
        new = dialogue[:, cache.get_seq_length() :]
        inputs = dialogue if given == "all tokens" else new
        output = model.generate(
            inputs,
            attention_mask=torch.ones_like(dialogue),
            past_key_values=cache,
            return_dict_in_generate=True,
            **GREEDY,
        )
        answer = output.sequences[:, inputs.shape[1] :]
        assert output.past_key_values is cache
        assert torch.equal(answer, model.generate(dialogue, **GREEDY)[:, dialogue.shape[1] :])
        dialogue = torch.cat([dialogue, answer, ids(1, 5, seed=turn)], dim=1)


def test_new_tokens_without_a_mask_of_all_are_refused(model):
    cache = EchoCache(model.config)
    model.generate(ids(1, 9), past_key_values=cache, **GREEDY)
    with pytest.raises(
        ValueError, match=r"has read 20 tokens, but .* no more than 3: give all tokens, or the new ones"
    ):
        model.generate(ids(1, 3), past_key_values=cache, **GREEDY)
    assert cache.get_seq_length() == 20


def test_what_it_returns_on_request(model):
    prompt = ids(2, 9)
    output = model.generate(
        prompt,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        output_hidden_states=True,
        **GREEDY,
    )
    whole = logits_of(model, output.sequences)
    assert len(output.scores) == len(output.logits) == len(output.hidden_states) == 12
    for step in range(12):
        assert error(output.logits[step], whole[:, 8 + step]) < 1e-5
        assert torch.equal(output.scores[step].argmax(-1), output.sequences[:, 9 + step])
        tokens = 9 if step == 0 else 1
        assert [states.shape for states in output.hidden_states[step]] == [(2, tokens, 32)] * 4
    assert output.past_key_values.get_seq_length() == 20
    uncached = model.generate(prompt, return_dict_in_generate=True, use_cache=False, **GREEDY)
    assert torch.equal(uncached.sequences, output.sequences)
    assert uncached.past_key_values is None


class Collector(BaseStreamer):
    def __init__(self):
        self.pieces, self.ended = [], False

    def put(self, value):
        self.pieces.append(value.reshape(1, -1))

    def end(self):
        self.ended = True


@pytest.mark.parametrize("more", [{}, {"prompt_lookup_num_tokens": 3}], ids=["one by one", "drafts"])
def test_a_streamer_gets_every_token_once(model, more):
    streamer = Collector()
    found = model.generate(ids(1, 6).repeat(1, 2), streamer=streamer, **GREEDY, **more)
    assert streamer.ended
    assert torch.equal(torch.cat(streamer.pieces, dim=1), found)


class Until(StoppingCriteria):
    """Stop a row once it holds a token so many times."""

    def __init__(self, token, times):
        self.token, self.times = token, times

    def __call__(self, input_ids, scores, **kwargs):
        return (input_ids == self.token).sum(dim=1) >= self.times


def test_it_stops_where_it_is_told(model):
    prompt = ids(2, 9)
    free = model.generate(prompt, **(GREEDY | {"max_new_tokens": 30}))
    token = int(free[0, 9 + 4])
    stopped = model.generate(
        prompt[:1], max_new_tokens=30, do_sample=False, stopping_criteria=StoppingCriteriaList([Until(token, 1)])
    )
    assert torch.equal(stopped[0], free[0, : stopped.shape[1]])
    assert int(stopped[0, -1]) == token or token in prompt[0]
    ended = model.generate(prompt, max_new_tokens=30, do_sample=False, eos_token_id=token, pad_token_id=0)
    first = 9 + int((free[0, 9:] == token).nonzero()[0])
    assert torch.equal(ended[0, : first + 1], free[0, : first + 1])
    assert not bool(ended[0, first + 1 :].any())  # padding behind the end, while the other row goes on
    others = [int(end) for end in (free[1, 9:] == token).nonzero()[:1]] or [29]
    assert torch.equal(ended[1, : 9 + others[0] + 1], free[1, : 9 + others[0] + 1])


def test_a_draft_stops_at_the_end_too(model):
    prompt = ids(1, 6).repeat(1, 3)
    free = model.generate(prompt, max_new_tokens=25, do_sample=False)
    settings = {"max_new_tokens": 25, "do_sample": False, "eos_token_id": int(free[0, -10]), "pad_token_id": 0}
    assert torch.equal(
        model.generate(prompt, prompt_lookup_num_tokens=6, **settings), model.generate(prompt, **settings)
    )


def test_it_goes_on_without_a_cache_where_the_model_has_none():
    model = small_model("ssm", ska_layers=None, layer_types=["mamba2", "ska-paper", "mamba2"])
    found = model.generate(ids(1, 70), use_cache=False, **GREEDY)
    assert torch.equal(found[0, 70], logits_of(model, ids(1, 70))[0, -1].argmax())


def test_position_ids_are_not_needed_but_taken(model):
    tokens, mask = ids(2, 9), torch.ones(2, 9, dtype=torch.long)
    mask[0, :3] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    settings = GREEDY | {"attention_mask": mask, "pad_token_id": 0}
    assert torch.equal(model.generate(tokens, position_ids=positions, **settings), model.generate(tokens, **settings))


def test_settings_are_saved_with_the_model(model, tmp_path):
    model.generation_config = GenerationConfig(max_new_tokens=5, do_sample=False, eos_token_id=VOCABULARY - 1)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.generation_config.max_new_tokens == 5
    assert torch.equal(loaded.generate(ids(1, 9)), model.generate(ids(1, 9)))
