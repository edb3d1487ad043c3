"""Every field of a request: read, or refused in one sentence."""

from __future__ import annotations

import json
import sys

import pytest

from echo_ska.serving.protocol import RefusedError, Sampling, parse

USER = {"role": "user", "content": "Hi"}


def chat(**fields):
    return parse(json.dumps({"messages": [USER]} | fields).encode(), "m", chat=True)


def completion(**fields):
    return parse(json.dumps({"prompt": "Hi"} | fields).encode(), "m", chat=False)


def test_the_least_requests():
    asked = chat()
    assert asked.messages == [USER]
    assert asked.sampling == Sampling()
    assert (asked.is_chat, asked.stream, asked.include_usage) == (True, False, False)
    asked = completion()
    assert (asked.messages, asked.prompt, asked.is_chat) == (None, "Hi", False)
    assert asked.sampling == Sampling(unasked_new_tokens=16)


def test_negative_seeds_are_seeds_and_fields_without_a_value_ask_for_nothing():
    assert chat(seed=-1).sampling.seed == 2**63 - 1
    assert chat(seed=-(2**63)).sampling.seed == 0
    assert chat(reasoning_effort=None, prediction=None, tools=None) == chat()


def test_what_is_nested_too_deeply_is_one_sentence():
    for depth in range(100, sys.getrecursionlimit() + 200, 50):
        body = '{"messages":[{"role":"user","content":"Hi"}],"temperature":' + "[" * depth + "]" * depth + "}"
        with pytest.raises(RefusedError, match=r"temperature must be a number|nested too deeply"):
            parse(body.encode(), "m", chat=True)


def test_all_settings():
    asked = chat(
        model="m",
        stream=True,
        stream_options={"include_usage": True},
        max_completion_tokens=5,
        max_tokens=5,
        temperature=0,
        top_k=3,
        top_p=0.5,
        seed=0,
        stop="x",
    )
    assert asked.sampling == Sampling(5, 0.0, 3, 0.5, 0, ("x",))
    assert asked.stream
    assert asked.include_usage
    assert completion(stop=["a", "b"], prompt=[1, 2]).sampling.stop == ("a", "b")


def test_fields_that_ask_for_nothing_are_taken():
    chat(n=1, tools=[], tool_choice="none", logprobs=False, logit_bias={}, frequency_penalty=0.0, presence_penalty=0)
    chat(response_format={"type": "text"}, user="me", metadata={"a": "b"}, store=False, parallel_tool_calls=True)
    completion(n=1, best_of=1, echo=False, suffix=None, logprobs=None, top_k=None, seed=None)


def test_a_message_may_be_what_an_answer_was():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    answer = {"role": "assistant", "content": "x", "refusal": None, "tool_calls": None, "annotations": []}
    asked = chat(messages=[{"role": "developer", "content": parts}, answer, USER])
    assert asked.messages == [{"role": "developer", "content": "ab"}, {"role": "assistant", "content": "x"}, USER]


@pytest.mark.parametrize(
    ("words", "param", "fields"),
    [
        ("messages must be a list", "messages", {"messages": None}),
        ("messages must be a list", "messages", {"messages": []}),
        ("messages must be a list", "messages", {"messages": "Hi"}),
        ("must be an object with role", "messages[1]", {"messages": [USER, "Hi"]}),
        ('got "robot"', "messages[0].role", {"messages": [{"role": "robot", "content": "x"}]}),
        ("got null", "messages[0].role", {"messages": [{"content": "x"}]}),
        ("got [1]", "messages[0].role", {"messages": [{"role": [1], "content": "x"}]}),
        ("tools are not supported", "messages[0].role", {"messages": [{"role": "tool", "content": "x"}]}),
        ("tool_calls is not supported", "messages[0].tool_calls", {"messages": [USER | {"tool_calls": [{"id": "1"}]}]}),
        ("must be a string or a list", "messages[0].content", {"messages": [{"role": "user"}]}),
        ("must be a string or a list", "messages[0].content", {"messages": [{"role": "user", "content": 5}]}),
        (
            'got "image_url": text alone',
            "messages[0].content[0]",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        ),
        ("must be a part", "messages[0].content[0]", {"messages": [{"role": "user", "content": ["x"]}]}),
        (
            "text must be a string",
            "messages[0].content[0].text",
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        ),
        ("lone surrogate", "messages[0].content", {"messages": [{"role": "user", "content": "\ud800"}]}),
        ("The name of a field is not Unicode text", None, {"\ud800": 1}),
        ("name of a field of messages[0] is not Unicode text", "messages[0]", {"messages": [USER | {"\ud800": 1}]}),
        ("n is not supported, one answer", "n", {"n": 2}),
        ("n is not supported", "n", {"n": True}),
        ("tools are not supported", "tools", {"tools": [{"type": "function"}]}),
        ("tools are not supported", "tool_choice", {"tool_choice": "required"}),
        ("no log-probabilities", "logprobs", {"logprobs": True}),
        ("no log-probabilities", "top_logprobs", {"top_logprobs": 2}),
        ("logits are not changed", "logit_bias", {"logit_bias": {"5": 1}}),
        ("no penalties", "presence_penalty", {"presence_penalty": 0.5}),
        ("plain text", "response_format", {"response_format": {"type": "json_object"}}),
        ("plain text", "audio", {"audio": {"voice": "x"}}),
        ("no field 'prompt'", "prompt", {"prompt": "x"}),
        ("no field 'tempersture'", "tempersture", {"tempersture": 1}),
        ("model must be a string", "model", {"model": 5}),
        ("stream must be true or false", "stream", {"stream": "yes"}),
        ("must be an object", "stream_options", {"stream": True, "stream_options": True}),
        ("for a stream", "stream_options", {"stream_options": {"include_usage": True}}),
        ("no field 'x'", "stream_options", {"stream": True, "stream_options": {"x": 1}}),
        ("temperature must be at least 0, got -1", "temperature", {"temperature": -1}),
        ("temperature must be a number", "temperature", {"temperature": "hot"}),
        ("temperature must be a number", "temperature", {"temperature": float("nan")}),
        ("temperature must be a number", "temperature", {"temperature": float("inf")}),
        ("temperature must be a number, got 1000000", "temperature", {"temperature": 10**400}),
        ("temperature must be a number", "temperature", {"temperature": True}),
        ("top_p must be above 0", "top_p", {"top_p": 0}),
        ("top_p must be above 0", "top_p", {"top_p": 1.5}),
        ("top_k must be an integer of at least 1", "top_k", {"top_k": -1}),
        ("max_tokens must be an integer of at least 1, got -5", "max_tokens", {"max_tokens": -5}),
        ("max_tokens must be an integer", "max_tokens", {"max_tokens": 1.5}),
        ("max_tokens must be an integer", "max_tokens", {"max_tokens": True}),
        ("differ", "max_tokens", {"max_tokens": 5, "max_completion_tokens": 6}),
        ("seed must be an integer of at least -9223372036854775808", "seed", {"seed": -(2**63) - 1}),
        ("seed must be below", "seed", {"seed": 2**63}),
        ("stop must be", "stop", {"stop": ""}),
        ("stop must be", "stop", {"stop": ["a"] * 5}),
        ("stop must be", "stop", {"stop": [1]}),
        ("lone surrogate", "stop", {"stop": "\udfff"}),
    ],
)
def test_what_a_chat_may_not_say(words, param, fields):
    with pytest.raises(RefusedError) as refused:
        chat(**fields)
    assert words in str(refused.value)
    assert refused.value.param == param
    assert refused.value.status == 400
    assert str(refused.value).endswith(".")
    assert len(str(refused.value)) < 200
    assert json.dumps(refused.value.body(), ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("words", "fields"),
    [
        ("prompt must be a string or a list", {"prompt": None}),
        ("prompt must be a string or a list", {"prompt": {}}),
        ("prompt must be a string or a list", {"prompt": []}),
        ("prompt must be a string or a list", {"prompt": [[]]}),
        ("prompt must be a string or a list", {"prompt": [1, "a"]}),
        ("prompt must be a string or a list", {"prompt": [True]}),
        ("several prompts", {"prompt": ["a", "b"]}),
        ("prompt is empty", {"prompt": ""}),
        ("lone surrogate", {"prompt": "\ud800"}),
        ("no field 'messages'", {"messages": [USER]}),
        ("no field 'max_completion_tokens'", {"max_completion_tokens": 5}),
        ("one answer a request", {"best_of": 2}),
        ("not repeated", {"echo": True}),
        ("only written on", {"suffix": "x"}),
        ("no log-probabilities", {"logprobs": 0}),
    ],
)
def test_what_a_completion_may_not_say(words, fields):
    with pytest.raises(RefusedError, match=words):
        completion(**fields)
