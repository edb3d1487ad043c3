"""Answers in OpenAI's form, whole or as the chunks of a stream."""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from echo_ska.serving.engine import Outcome

END_OF_STREAM = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class AnswerForm:
    """The fields that all objects of one answer share.

    Attributes:
        model: its name.
        fingerprint: of the model, given as OpenAI's `system_fingerprint`: with it and a seed an answer is repeatable.
        is_chat: a chat's answer, or a completion's.
        id, created: of the answer; the time in seconds since 1970.
    """

    model: str
    fingerprint: str
    is_chat: bool
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, text: str, outcome: Outcome) -> dict[str, Any]:
        """The answer as one object."""
        content = (
            {"message": {"role": "assistant", "content": text, "refusal": None}} if self.is_chat else {"text": text}
        )
        choice = self._choice(content, outcome.finish_reason)
        return self._object("chat.completion", [choice]) | {"usage": usage(outcome)}

    def chunk(self, text: str | None, finish_reason: str | None = None) -> dict[str, Any]:
        """A piece of the answer; of a chat, None is the first, which says whose words follow."""
        if not self.is_chat:
            content: dict[str, Any] = {"text": text or ""}
        elif text is None:
            content = {"delta": {"role": "assistant", "content": ""}}
        else:
            content = {"delta": {"content": text} if text else {}}
        return self._object("chat.completion.chunk", [self._choice(content, finish_reason)])

    def usage_chunk(self, outcome: Outcome) -> dict[str, Any]:
        """The last object of a stream that was to end with the counts."""
        return self._object("chat.completion.chunk", []) | {"usage": usage(outcome)}

    def _choice(self, content: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
        return {"index": 0, **content, "logprobs": None, "finish_reason": finish_reason}

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": ("chatcmpl-" if self.is_chat else "cmpl-") + self.id,
            "object": kind if self.is_chat else "text_completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint[:12],
            "choices": choices,
        }


def usage(outcome: Outcome) -> dict[str, Any]:
    """Counts of tokens; `cached_tokens` of the prompt were not read again."""
    return {
        "prompt_tokens": outcome.prompt_tokens,
        "completion_tokens": outcome.completion_tokens,
        "total_tokens": outcome.prompt_tokens + outcome.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": outcome.cached_tokens},
    }


def event(value: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
