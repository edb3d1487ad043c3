"""A real server on this machine, asked over HTTP: what it answers, and what it survives."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
import time

import pytest
from serving_models import NAME, QUESTION, SYSTEM, chat_text, decoded, endless, greedy

from echo_ska.memory import ContextStore
from echo_ska.models import byte_tokenizer
from echo_ska.serving.engine import Engine

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
GREEDY = {"temperature": 0}


def texts(events, chat=True):
    """The text of a stream's chunks."""
    choices = [event["choices"][0] for event in events if event["choices"]]
    return "".join(choice["delta"].get("content", "") if chat else choice["text"] for choice in choices)


def test_a_chat_is_what_the_model_says(client, model):
    wanted = greedy(model, chat_text(SYSTEM, QUESTION), 20)
    answer = client.chat(SYSTEM, QUESTION, **GREEDY, max_tokens=20, model=NAME)
    assert answer["object"] == "chat.completion"
    assert answer["model"] == NAME
    assert answer["id"].startswith("chatcmpl-")
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": decoded(wanted), "refusal": None}
    assert choice["finish_reason"] == ("length" if len(wanted) == 20 else "stop")
    prompt = len(chat_text(SYSTEM, QUESTION).encode())
    assert answer["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": len(wanted),
        "total_tokens": prompt + len(wanted),
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_a_completion_is_what_the_model_says(client, model):
    answer = client.complete("Héllo", **GREEDY)
    wanted = greedy(model, "Héllo", 16)  # OpenAI's number where none is given
    assert answer["object"] == "text_completion"
    assert answer["choices"][0]["text"] == decoded(wanted)
    assert answer["usage"]["prompt_tokens"] == 6
    by_ids = client.complete(list("Héllo".encode()), **GREEDY)
    assert by_ids["choices"] == answer["choices"]
    assert by_ids["usage"]["prompt_tokens_details"]["cached_tokens"] == 6
    assert client.complete(["Héllo"], **GREEDY)["choices"] == answer["choices"]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_a_stream_is_the_answer_in_pieces(client, path):
    asked = {"messages": [SYSTEM, QUESTION]} if path == CHAT else {"prompt": "Hello"}
    asked |= {"max_tokens": 24, "seed": 3, "temperature": 0.9}
    whole = client.answer(path, **asked)
    events = client.events(path, **asked, stream_options={"include_usage": True})
    text = whole["choices"][0]["message"]["content"] if path == CHAT else whole["choices"][0]["text"]
    assert texts(events, path == CHAT) == text
    assert len({event["id"] for event in events}) == 1
    assert {event["object"] for event in events} == {"chat.completion.chunk" if path == CHAT else "text_completion"}
    if path == CHAT:
        assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [event["choices"][0]["finish_reason"] for event in events[:-1]] == [None] * (len(events) - 2) + [
        whole["choices"][0]["finish_reason"]
    ]
    assert all(event["usage"] is None for event in events[:-1])
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert len(events) > 4  # it came in pieces
    without = client.events(path, **asked)
    assert texts(without, path == CHAT) == text
    assert not any("usage" in event for event in without)


def test_a_system_prompt_is_read_once(client, serve):
    other = {"role": "user", "content": "And why at this hour?"}
    system = len(chat_text(SYSTEM).removesuffix("assistant:\n").encode())
    plain = serve(with_store=False)
    for number, question in enumerate([QUESTION, other]):
        asked = {**GREEDY, "max_tokens": 20}
        answer = client.chat(SYSTEM, question, **asked)
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == (system if number else 0)
        again = client.chat(SYSTEM, question, **asked)
        assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == again["usage"]["prompt_tokens"]
        unstored = plain.chat(SYSTEM, question, **asked)
        assert unstored["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        assert answer["choices"] == again["choices"] == unstored["choices"]
    # A conversation that goes on begins with what was asked before.
    said = {key: value for key, value in answer["choices"][0]["message"].items() if value is not None}
    more = client.chat(SYSTEM, other, said, QUESTION, **GREEDY, max_tokens=5)
    assert more["usage"]["prompt_tokens_details"]["cached_tokens"] == len(chat_text(SYSTEM, other).encode())


def test_requests_at_the_same_time(client):
    questions = [{"role": "user", "content": f"Question {number}?"} for number in range(4)]
    alone = [client.chat(question, **GREEDY, max_tokens=15)["choices"] for question in questions]
    found = [None] * 4

    def ask(number):
        found[number] = client.chat(questions[number], **GREEDY, max_tokens=15)["choices"]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == alone


def test_stop_strings_end_an_answer(client, model):
    text = decoded(greedy(model, "Hello", 40))
    stop = text[7:9]
    wanted = text[: text.index(stop)]
    answer = client.complete("Hello", **GREEDY, max_tokens=40, stop=["never said", stop])
    assert answer["choices"][0]["text"] == wanted
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] < 40
    assert texts(client.events(COMPLETIONS, prompt="Hello", **GREEDY, max_tokens=40, stop=stop), chat=False) == wanted


def test_the_seed_decides(client):
    def drawn(**settings):
        return client.complete("Hello", max_tokens=30, **settings)["choices"][0]["text"]

    assert drawn(seed=1) == drawn(seed=1)
    assert drawn(seed=1) != drawn(seed=2)
    assert drawn() != drawn()
    assert drawn(top_k=1) == drawn(temperature=0) == drawn(top_p=1e-9)


def test_models_and_health(client):
    assert client.ask("GET", "/health") == (200, {"status": "ok", "model": NAME, "unfinished": 0})
    status, listed = client.ask("GET", "/v1/models")
    assert status == 200
    assert [one["id"] for one in listed["data"]] == [NAME]
    assert client.ask("GET", f"/v1/models/{NAME}") == (200, listed["data"][0])
    assert client.ask("GET", "/v1/models/other")[0] == 404


@pytest.mark.parametrize("host", ["127.0.0.2", "127.0.0.2:8000", "[::1]:8000", "localhost", "Localhost.:8000"])
def test_every_name_of_this_machine_is_answered(shared, host):
    assert shared.ask("GET", "/health", headers={"Host": host})[0] == 200


HELLO = {"messages": [QUESTION]}


@pytest.mark.parametrize(
    ("status", "words", "method", "path", "body", "headers"),
    [
        (400, "not JSON", "POST", CHAT, b'{"messages": [', {}),
        (400, "not JSON: it is nested", "POST", CHAT, b"[" * 200_000, {}),
        (400, "must be a JSON object", "POST", COMPLETIONS, b"[1]", {}),
        (400, "not JSON", "POST", COMPLETIONS, b"", {}),
        (400, "not UTF-8: byte 12 is 0xff", "POST", COMPLETIONS, b'{"prompt": "\xff"}', {}),
        (400, "lone surrogate", "POST", COMPLETIONS, b'{"prompt": "\\ud800"}', {}),
        (400, "lone surrogate", "POST", COMPLETIONS, {"prompt": "a", "\ud800": 1}, {}),
        (400, "lone surrogate", "POST", CHAT, {"messages": [QUESTION | {"\ud800": 1}]}, {}),
        (413, "longer than 300,000 bytes", "POST", COMPLETIONS, b'"' + b"x" * 2_000_000 + b'"', {}),
        (413, "longer than 300,000 bytes", "POST", COMPLETIONS, b"x" * 300_001, {}),
        (
            400,
            "prompt has 2001 tokens: this server reads at most 2000",
            "POST",
            COMPLETIONS,
            {"prompt": "x" * 2001},
            {},
        ),
        (400, "messages has 3", "POST", CHAT, {"messages": [{"role": "user", "content": "x" * 3000}]}, {}),
        (400, "max_tokens is 9999999", "POST", CHAT, HELLO | {"max_tokens": 9999999}, {}),
        (400, "from 0 to 255", "POST", COMPLETIONS, {"prompt": [256]}, {}),
        (400, "from 0 to 255", "POST", COMPLETIONS, {"prompt": [-1, 10**30]}, {}),
        (404, "no model 'gpt'", "POST", CHAT, HELLO | {"model": "gpt"}, {}),
        (404, "nothing at /v2", "GET", "/v2", None, {}),
        (404, "nothing at /v1/embeddings", "POST", "/v1/embeddings", {"input": "x"}, {}),
        (405, "does not take GET", "GET", CHAT, None, {}),
        (405, "does not take POST", "POST", "/health", {}, {}),
        (415, "must be application/json, got text/plain", "POST", CHAT, HELLO, {"Content-Type": "text/plain"}),
        (415, "got none", "POST", CHAT, HELLO, {"Content-Type": None}),
        (403, "localhost alone", "GET", "/health", None, {"Host": "evil.example:80"}),
        (403, "localhost alone", "GET", "/health", None, {"Host": "127.0.0.1.evil.example"}),
        (403, "localhost alone", "GET", "/health", None, {"Host": "192.168.0.1:8000"}),
    ],
)
def test_what_is_refused_and_survived(shared, status, words, method, path, body, headers):
    found, answer = shared.ask(method, path, body, headers)
    assert found == status, answer
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert words in answer["error"]["message"]
    assert answer["error"]["message"].endswith(".")
    assert answer["error"]["type"] == "invalid_request_error"
    assert shared.ask("GET", "/health")[0] == 200


@pytest.fixture
def shared(serve):
    engine = Engine(endless(), byte_tokenizer(), NAME, max_prompt_tokens=2000, max_new_tokens=1_000_000)
    return serve(engine=engine, app_settings={"max_body_bytes": 300_000})


def test_a_body_that_never_ends_is_left(shared):
    with contextlib.closing(socket.create_connection(("127.0.0.1", shared.port), timeout=30)) as raw:
        raw.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        piece = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        with contextlib.suppress(ConnectionError):
            for _ in range(1000):  # 65 MB; the server reads 2.4 MB of them
                raw.sendall(piece)
            pytest.fail("the server went on reading")
    assert shared.ask("GET", "/health")[0] == 200


def test_what_is_no_http_is_survived(shared):
    for junk in (
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: x\r\n\r\n",
    ):
        with contextlib.closing(socket.create_connection(("127.0.0.1", shared.port), timeout=5)) as raw:
            raw.sendall(junk)
            raw.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError):
                assert b"Traceback" not in raw.recv(4096)
    assert shared.complete("Hello", max_tokens=2)["choices"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_ends_its_answer(shared, stream):
    asked = {"prompt": "Hello", **GREEDY, "max_tokens": 1_000_000, "stream": stream}
    connection = shared.send("POST", COMPLETIONS, asked)
    if stream:
        response = connection.getresponse()
        assert response.read(20)
        response.close()
    else:
        end = time.monotonic() + 20
        while not shared.ask("GET", "/health")[1]["unfinished"]:
            assert time.monotonic() < end
    waiting = shared.send("POST", COMPLETIONS, asked)  # goes away before its turn
    while shared.ask("GET", "/health")[1]["unfinished"] < 2:
        time.sleep(0.01)
    waiting.close()
    connection.close()
    shared.wait_until_idle()
    assert shared.complete("Hello", max_tokens=2)["choices"]


def test_too_many_are_told_so(shared):
    asked = {"prompt": "Hello", **GREEDY, "max_tokens": 1_000_000}
    connections = [shared.send("POST", COMPLETIONS, asked) for _ in range(65)]
    end = time.monotonic() + 30
    while shared.ask("GET", "/health")[1]["unfinished"] < 65:
        assert time.monotonic() < end
    status, answer = shared.ask("POST", COMPLETIONS, asked)
    assert status == 503
    assert answer["error"]["type"] == "server_error"
    assert "64 requests wait already" in answer["error"]["message"]
    for connection in connections:
        connection.close()
    shared.wait_until_idle()


def test_a_failure_of_ours_is_an_answer_and_logged(serve, model, caplog):
    class Failing(Engine):
        def answer(self, *arguments):
            raise ZeroDivisionError("secret detail")

    client = serve(engine=Failing(model, byte_tokenizer(), NAME))
    with caplog.at_level(logging.ERROR):
        status, answer = client.ask("POST", CHAT, HELLO)
        assert status == 500
        assert answer["error"]["type"] == "server_error"
        assert "secret" not in json.dumps(answer)
        with contextlib.closing(client.send("POST", CHAT, HELLO | {"stream": True})) as connection:
            streamed = connection.getresponse().read().decode()
    assert "server_error" in streamed
    assert "secret" not in streamed
    assert "ZeroDivisionError" in caplog.text
    assert client.ask("GET", "/health")[1]["unfinished"] == 0


def test_an_answer_comes_though_the_store_is_full(serve, model, tmp_path, caplog):
    client = serve(engine=Engine(model, byte_tokenizer(), NAME, ContextStore(tmp_path / "small", max_bytes=10)))
    answer = client.complete("Hello", **GREEDY)
    assert answer["choices"][0]["text"] == decoded(greedy(model, "Hello", 16))
    assert "max_bytes" in caplog.text
