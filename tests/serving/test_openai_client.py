"""OpenAI's own Python client, where it is installed, against a server of this machine."""

from __future__ import annotations

import pytest
from serving_models import NAME, QUESTION, SYSTEM, chat_text, decoded, greedy

openai = pytest.importorskip("openai", reason="OpenAI's client is not installed (pip install openai)")


@pytest.fixture
def asking(client, monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    with openai.OpenAI(base_url=client.url, api_key="none", max_retries=0, timeout=60) as asking:
        yield asking


def test_chats_streams_and_completions(asking, model):
    wanted = decoded(greedy(model, chat_text(SYSTEM, QUESTION), 12))
    settings = {"model": NAME, "messages": [SYSTEM, QUESTION], "temperature": 0, "max_completion_tokens": 12}
    answer = asking.chat.completions.create(**settings)
    assert answer.choices[0].message.content == wanted
    assert answer.usage.prompt_tokens_details.cached_tokens == 0
    chunks = list(asking.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == wanted
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens == answer.usage.prompt_tokens
    # What it was answered goes back as it came.
    more = [SYSTEM, QUESTION, answer.choices[0].message.model_dump(), QUESTION]
    assert asking.chat.completions.create(**settings | {"messages": more}).usage.prompt_tokens_details.cached_tokens > 0
    told = asking.completions.create(model=NAME, prompt="Hello", temperature=0, extra_body={"top_k": 5})
    assert told.choices[0].text == decoded(greedy(model, "Hello", 16))
    assert [one.id for one in asking.models.list()] == [NAME]
    assert asking.models.retrieve(NAME).id == NAME


def test_its_errors(asking):
    with pytest.raises(openai.BadRequestError, match="tools are not supported"):
        asking.chat.completions.create(model=NAME, messages=[QUESTION], tools=[{"type": "function"}])
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-4'"):
        asking.chat.completions.create(model="gpt-4", messages=[QUESTION])
