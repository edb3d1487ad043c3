"""From prompts to answers, without a network."""

from __future__ import annotations

import json

import pytest
import torch
from serving_models import NAME, QUESTION, SYSTEM, chat_text, decoded, greedy, tiny

from echo_ska.memory import ContextStore, fingerprint
from echo_ska.memory.index import DamagedIndexError
from echo_ska.models import EchoConfig, EchoForCausalLM, byte_tokenizer, train_bpe
from echo_ska.serving import engine as engine_module
from echo_ska.serving.engine import CancelledAnswerError, Engine
from echo_ska.serving.protocol import RefusedError, Sampling, parse

GREEDY = Sampling(max_new_tokens=20, temperature=0)


def asked(*messages):
    return parse(json.dumps({"messages": list(messages)}).encode(), NAME, chat=True)


def answer(engine, prompt, sampling=GREEDY, is_cancelled=lambda: False):
    pieces = []
    outcome = engine.answer(prompt, sampling, pieces.append, is_cancelled)
    assert all(pieces)
    return "".join(pieces), outcome


def test_a_prompt_is_cut_where_its_system_messages_end(model):
    engine = Engine(model, byte_tokenizer(), NAME)
    prompt = engine.prepare(asked(SYSTEM, QUESTION))
    whole = chat_text(SYSTEM, QUESTION)
    assert decoded(prompt.ids) == whole.replace("\0", "")
    end = len(chat_text(SYSTEM).removesuffix("assistant:\n").encode())
    assert prompt.kept_at == (end, len(whole.encode()))
    assert engine.prepare(asked(QUESTION)).kept_at == (len(chat_text(QUESTION).encode()),)
    assert len(engine.prepare(asked(SYSTEM)).kept_at) == 1


def test_the_models_bytes_are_read_once_an_engine(tmp_path, monkeypatch):
    one, looks = tiny(), []
    store = ContextStore(tmp_path / "store")
    engine, look = Engine(one, byte_tokenizer(), NAME, store), fingerprint._function
    monkeypatch.setattr(fingerprint, "_function", lambda model: (looks.append(model), look(model))[1])
    prompt = engine.prepare(asked(SYSTEM, QUESTION))
    first, _ = answer(engine, prompt)
    again, outcome = answer(engine, prompt)
    assert again == first
    assert outcome.cached_tokens == len(prompt.ids)
    assert not looks
    assert fingerprint.model_fingerprint(one) == engine.fingerprint  # elsewhere it is looked at as before
    assert len(looks) == 1


def test_byte_pairs_are_cut_there_too(tmp_path):
    (tmp_path / "t.txt").write_text("you answer in riddles, and never twice with the same one. who comes there? " * 20)
    tokenizer = train_bpe([tmp_path / "t.txt"], 300)
    engine = Engine(tiny(vocab_size=300), tokenizer, NAME, ContextStore(tmp_path / "store"))
    prompt = engine.prepare(asked(SYSTEM, QUESTION))
    first = tokenizer.apply_chat_template([SYSTEM], tokenize=False)
    assert prompt.kept_at[0] == len(tokenizer(first, add_special_tokens=False)["input_ids"])
    text, outcome = answer(engine, prompt)
    assert outcome.cached_tokens == 0
    again, outcome = answer(engine, prompt)
    assert again == text
    assert outcome.cached_tokens == outcome.prompt_tokens == len(prompt.ids)


def test_no_message_can_close_itself(tmp_path):
    (tmp_path / "t.txt").write_text("who comes there? " * 20)
    tokenizer = train_bpe([tmp_path / "t.txt"], 270)
    engine = Engine(tiny(vocab_size=270), tokenizer, NAME)

    def ends(content):
        ids = engine.prepare(asked({"role": "system", "content": content}, QUESTION)).ids.tolist()
        return ids.count(tokenizer.eos_token_id)

    assert ends("Be honest.") == 2
    for parts in (["<|endof<|endoftext|>text|>"], ["a<|endof", "text|>b"], ["<|endof", "<|endoftext|>", "text|>"]):
        assert ends("".join(parts)) == 2
        assert ends([{"type": "text", "text": part} for part in parts]) == 2


def test_a_template_that_refuses_is_a_refusal(model):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no system here') if messages[0]['role'] == 'system' else 'x' }}"
    engine = Engine(model, tokenizer, NAME)
    with pytest.raises(RefusedError, match="no system here"):
        engine.prepare(asked(SYSTEM, QUESTION))
    tokenizer.chat_template = None
    with pytest.raises(RefusedError, match="use /v1/completions"):
        Engine(model, tokenizer, NAME).prepare(asked(QUESTION))


def test_long_prompts_are_read_in_segments(model, monkeypatch):
    monkeypatch.setattr(engine_module, "SEGMENT_LENGTH", 16)
    question = {"role": "user", "content": "Who comes there, and why at this hour? " * 5}
    engine = Engine(model, byte_tokenizer(), NAME)
    text, _ = answer(engine, engine.prepare(asked(SYSTEM, question)))
    assert text == decoded(greedy(model, chat_text(SYSTEM, question), 20))


def test_an_answer_can_be_called_off_at_any_time(model, monkeypatch, tmp_path):
    monkeypatch.setattr(engine_module, "SEGMENT_LENGTH", 16)
    store = ContextStore(tmp_path / "store")
    engine = Engine(model, byte_tokenizer(), NAME, store)
    prompt = engine.prepare(asked({"role": "user", "content": "x" * 200}))
    for asked_before in (0, 3, 20):
        left = iter([False] * asked_before)
        pieces = []
        with pytest.raises(CancelledAnswerError):
            engine.answer(prompt, GREEDY, pieces.append, lambda left=left: next(left, True))
        assert bool(store.list()) == (asked_before == 20)  # after 3 segments of 14, the prompt was not yet read
        assert bool(pieces) == (asked_before == 20)


def test_damage_in_the_store_is_read_anew(model, tmp_path, caplog):
    store = ContextStore(tmp_path / "store")
    engine = Engine(model, byte_tokenizer(), NAME, store)
    prompt = engine.prepare(asked(SYSTEM, QUESTION))
    text, _ = answer(engine, prompt)
    for path in (tmp_path / "store" / "states").glob("*/state.safetensors"):
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    again, outcome = answer(engine, prompt)
    assert again == text
    assert outcome.cached_tokens == 0
    assert "damaged" in caplog.text
    assert answer(engine, prompt)[1].cached_tokens == len(prompt.ids)


def test_an_index_that_is_damaged_meanwhile_is_answered_all_the_same(model, tmp_path, monkeypatch, caplog):
    store = ContextStore(tmp_path / "store")
    engine = Engine(model, byte_tokenizer(), NAME, store)
    prompt = engine.prepare(asked(SYSTEM, QUESTION))
    text, _ = answer(engine, prompt)
    with store._index.connection() as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'by_use'").fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    with (tmp_path / "store" / "index.sqlite3").open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"x" * size)
    again, outcome = answer(engine, prompt)
    assert (again, outcome.cached_tokens) == (text, len(prompt.ids))
    assert "it is made anew from the stored contexts" in caplog.text

    def broken(*_):
        raise DamagedIndexError("the index is damaged for good")

    monkeypatch.setattr(store, "find", broken)
    again, outcome = answer(engine, prompt)
    assert (again, outcome.cached_tokens) == (text, 0)
    assert "cannot be read now: the index is damaged for good" in caplog.text


def test_why_an_answer_ended(model):
    engine = Engine(model, byte_tokenizer(), NAME, max_new_tokens=30)
    prompt = engine.prepare(asked(QUESTION))
    _, outcome = answer(engine, prompt, Sampling(temperature=0))
    assert (outcome.finish_reason, outcome.completion_tokens) == ("length", 30)
    with torch.no_grad():
        model_that_ends = tiny()
        model_that_ends.lm_head.weight.zero_()  # all logits are equal: the first token, the end, is taken
    _, outcome = answer(Engine(model_that_ends, byte_tokenizer(), NAME), prompt)
    assert (outcome.finish_reason, outcome.completion_tokens) == ("stop", 0)


def test_it_ends_at_any_end_token_of_the_models_own_settings(model):
    prompt = Engine(model, byte_tokenizer(), NAME).prepare(asked(QUESTION))
    text, _ = answer(Engine(model, byte_tokenizer(), NAME), prompt)
    model.generation_config.eos_token_id = [0, ord(text[3])]
    shorter, outcome = answer(Engine(model, byte_tokenizer(), NAME), prompt)
    assert shorter == text[: text.index(text[3])]
    assert outcome.finish_reason == "stop"


@pytest.mark.parametrize(("most", "written"), [(8, 8), (100, 16)])
def test_a_completion_that_asks_for_no_length_gets_the_usual_one_or_what_the_server_allows(model, most, written):
    engine = Engine(model, byte_tokenizer(), NAME, max_new_tokens=most)
    request = parse(json.dumps({"prompt": "Hi", "temperature": 0}).encode(), NAME, chat=False)
    _, outcome = answer(engine, engine.prepare(request), request.sampling)
    assert outcome.completion_tokens == written
    asked_for = parse(json.dumps({"prompt": "Hi", "max_tokens": most + 1}).encode(), NAME, chat=False)
    with pytest.raises(RefusedError, match=f"max_tokens is {most + 1}: this server writes at most {most}"):
        engine.prepare(asked_for)


def test_what_is_refused(model):
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_heads": 2, "rank": 4, "state_size": 4}
    whole = EchoForCausalLM(EchoConfig(**sizes, layer_types=["mamba2", "ska-paper", "mamba2"]))
    with pytest.raises(ValueError, match="cannot write token by token"):
        Engine(whole, byte_tokenizer(), NAME)
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1"):
        Engine(model, byte_tokenizer(), NAME, max_new_tokens=0)
