"""A server of a tiny model on a free port of this machine, and a client of the standard library."""

from __future__ import annotations

import contextlib
import http.client
import json
import sys
import threading
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from serving_models import NAME, tiny

from echo_ska.memory import ContextStore
from echo_ska.models import byte_tokenizer
from echo_ska.serving.engine import Engine


class Client:
    """Requests to one server of this machine; each waits at most 60 seconds."""

    def __init__(self, port, engine):
        self.port, self.engine, self.url = port, engine, f"http://127.0.0.1:{port}/v1"

    def connection(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def send(self, method, path, body=None, headers=None):
        """A connection with a request on its way."""
        connection = self.connection()
        raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        given = {"Content-Type": "application/json"} | (headers or {})
        connection.request(method, path, raw, {name: value for name, value in given.items() if value is not None})
        return connection

    def ask(self, method, path, body=None, headers=None):
        """Status and JSON of an answer."""
        with contextlib.closing(self.send(method, path, body, headers)) as connection:
            response = connection.getresponse()
            assert response.headers["Content-Type"] == "application/json"
            return response.status, json.loads(response.read())

    def answer(self, path, **body):
        """The JSON of an answer that must be one."""
        status, answer = self.ask("POST", path, body)
        assert status == 200, answer
        return answer

    def chat(self, *messages, **more):
        return self.answer("/v1/chat/completions", messages=list(messages), **more)

    def complete(self, prompt, **more):
        return self.answer("/v1/completions", prompt=prompt, **more)

    def events(self, path, **body):
        """The objects of a stream that must end well."""
        with contextlib.closing(self.send("POST", path, body | {"stream": True})) as connection:
            response = connection.getresponse()
            assert response.status == 200
            assert response.headers["Content-Type"].startswith("text/event-stream")
            lines = response.read().decode().split("\n\n")
        assert lines[-2:] == ["data: [DONE]", ""]
        assert all(line.startswith("data: ") for line in lines[:-1])
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]

    def wait_until_idle(self, seconds=20):
        """Until nothing is being answered."""
        end = time.monotonic() + seconds
        while self.ask("GET", "/health")[1]["unfinished"]:
            assert time.monotonic() < end, "an answer that nobody waits for is still being written"
            time.sleep(0.02)


@pytest.fixture(scope="session")
def model():
    return tiny()


@pytest.fixture
def serve(model, tmp_path):
    """Starts servers, each with a store of its own unless told otherwise, and ends them."""
    pytest.importorskip("starlette", reason="the extra `serve` is not installed")
    pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
    from echo_ska.serving.app import create_app
    from echo_ska.serving.server import bind, make_server

    with contextlib.ExitStack() as stack:

        def start(*, with_store=True, engine=None, app_settings=None, **settings):
            store = ContextStore(tmp_path / "store") if with_store else None
            engine = engine or Engine(model, byte_tokenizer(), NAME, store, **settings)
            listening = stack.enter_context(bind("127.0.0.1", 0))
            server = make_server(create_app(engine, **(app_settings or {})))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
            thread.start()

            def stop():
                server.should_exit = True
                thread.join(30)
                assert not thread.is_alive()

            stack.callback(stop)
            end = time.monotonic() + 30
            while not server.started:
                assert time.monotonic() < end
                time.sleep(0.01)
            return Client(listening.getsockname()[1], engine)

        yield start


@pytest.fixture
def client(serve):
    return serve()
