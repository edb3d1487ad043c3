"""`echo-ska serve` in a process of its own, on a free port of this machine."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading

import pytest
import torch

from echo_ska.models import EchoForCausalLM

needs_server = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("starlette", "uvicorn")),
    reason="the extra `serve` is not installed",
)


@contextlib.contextmanager
def serving(*arguments):
    """The process, and the port that it says; ended by Ctrl-C."""
    process = subprocess.Popen(
        [sys.executable, "-c", "from echo_ska.cli import main; main()", "serve", *map(str, arguments), "--port=0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=lambda: lines.put(process.stdout.readline()), daemon=True).start()
        line = lines.get(timeout=120)
        found = re.search(r"answers at http://127\.0\.0\.1:(\d+)/v1", line)
        assert found, line + process.stderr.read()
        yield process, int(found[1])
    finally:
        process.kill()
        process.wait(30)
        process.stdout.close()
        process.stderr.close()


@needs_server
def test_a_model_is_served_and_ended(run, model_folder, tmp_path):
    written = run(
        "generate", model_folder, "--prompt=Hello", "--temperature=0", "--max-new-tokens=6", "--json", tmp_path / "f"
    )
    assert written.exit_code == 0
    wanted = json.loads((tmp_path / "f").read_text())["text"]
    with serving(model_folder, "--store", tmp_path / "store") as (process, port):
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
            body = json.dumps({"model": "model", "prompt": "Hello", "temperature": 0, "max_tokens": 6})
            connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
            answer = json.loads(connection.getresponse().read())
        assert answer["choices"][0]["text"] == wanted
        process.send_signal(signal.SIGINT)
        assert process.wait(30) in (0, 130)
        assert "Traceback" not in process.stderr.read()
    assert "1 context, " in run("context", "list", tmp_path / "store").stdout


@needs_server
@pytest.mark.parametrize("stream", [True, False])
def test_answers_are_called_off_when_the_server_is_stopped(model_folder, tmp_path, stream):
    endless = tmp_path / "endless"
    shutil.copytree(model_folder, endless)
    model = EchoForCausalLM.from_pretrained(model_folder)
    with torch.no_grad():
        model.lm_head.weight[0] = 0  # the end token is never the likeliest
    model.save_pretrained(endless)
    with (
        serving(endless, "--max-new-tokens=1000000") as (process, port),
        contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection,
    ):
        body = json.dumps({"prompt": "Hello", "temperature": 0, "max_tokens": 1_000_000, "stream": stream})
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        if stream:
            response = connection.getresponse()
            assert response.read(20)
        else:
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as other:
                found = 0
                while not found:
                    other.request("GET", "/health")
                    found = json.loads(other.getresponse().read())["unfinished"]
        process.terminate()
        if not stream:
            response = connection.getresponse()
            assert response.status == 503
        text = response.read().decode()
        assert "The server was stopped before the answer was written." in text
        assert "[DONE]" not in text
        assert process.wait(30) is not None
        assert "Traceback" not in process.stderr.read()


@needs_server
def test_what_is_refused(refused, model_folder, tmp_path):
    refused("There is no folder", "serve", tmp_path / "absent", "--port=0")
    (tmp_path / "file").touch()
    refused("is a file", "serve", model_folder, "--port=0", "--store", tmp_path / "file")
    refused("Cannot listen at 192.0.2.1", "serve", model_folder, "--port=0", "--host=192.0.2.1")


def test_without_the_extra(refused, model_folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused("pip install 'echo-ska[serve]'", "serve", model_folder)
