"""What a request to OpenAI's interface may say here. What would not be honoured is refused in one sentence.

Fields and their meaning: https://platform.openai.com/docs/api-reference/chat/create and .../completions/create.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

ROLES = ("system", "developer", "user", "assistant")
COMPLETION_TOKENS = 16
"""What /v1/completions writes at most where max_tokens is not given, as OpenAI has it."""
MOST_STOPS = 4
LARGEST_SEED = 2**63 - 1

# Fields that change nothing about the answer here: labels, and what services do with requests.
_LABELS = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls"}
# Fields with the one value that asks for nothing; any other is refused with the reason.
_UNMET: dict[str, tuple[Collection[Any], str]] = {
    "n": ((1,), "one answer a request"),
    "best_of": ((1,), "one answer a request"),
    "echo": ((False,), "the prompt is not repeated"),
    "suffix": (("",), "text is only written on"),
    "logprobs": ((False,), "no log-probabilities are given"),
    "top_logprobs": ((0,), "no log-probabilities are given"),
    "logit_bias": (({},), "logits are not changed"),
    "frequency_penalty": ((0,), "there are no penalties"),
    "presence_penalty": ((0,), "there are no penalties"),
    "tools": (([],), "tools are not supported"),
    "tool_choice": (("none", "auto"), "tools are not supported"),
    "functions": (([],), "tools are not supported"),
    "function_call": (("none", "auto"), "tools are not supported"),
    "response_format": (({"type": "text"},), "answers are plain text"),
    "modalities": ((["text"],), "answers are plain text"),
    "audio": ((), "answers are plain text"),
}
_SETTINGS = {
    "model",
    "stream",
    "stream_options",
    "max_tokens",
    "temperature",
    "top_k",
    "top_p",
    "seed",
    "stop",
}


class RefusedError(ValueError):
    """A request that is answered by an error.

    Attributes:
        status: of HTTP.
        param: the field that is at fault, or None.
        code: a word for programs, or None.
    """

    def __init__(self, message: str, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param, self.code, self.status = param, code, status

    def body(self) -> dict[str, Any]:
        """The answer in OpenAI's form."""
        return error_body(str(self), self.status, self.param, self.code)


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn.

    Attributes:
        max_new_tokens: tokens to write at most; None, where nothing was asked for: `unasked_new_tokens`.
        temperature: 0 always takes the likeliest token.
        top_k, top_p: see `echo_ska.evaluation.sampling.write_on`.
        seed: of the draws; None: another one each time.
        stop: the answer ends before the first of these strings.
        unasked_new_tokens: tokens to write at most where the server allows so many; None: as many as it allows.
    """

    max_new_tokens: int | None = None
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    unasked_new_tokens: int | None = None


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Attributes:
        messages: of a chat, each with `role` and `content`, both strings; None for a completion.
        prompt: of a completion: text or token ids.
        sampling: how the answer is drawn.
        stream: whether the answer comes as server-sent events.
        include_usage: whether a stream ends with the counts of tokens.
    """

    messages: list[dict[str, str]] | None
    prompt: str | list[int]
    sampling: Sampling
    stream: bool
    include_usage: bool

    @property
    def is_chat(self) -> bool:
        return self.messages is not None


def error_body(message: str, status: int, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's form."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def parse(body: bytes, model_name: str, chat: bool) -> Request:
    """Read the body of POST /v1/chat/completions (`chat`) or /v1/completions.

    Args:
        body: as it came.
        model_name: the only model that may be asked for.
        chat: which of the two it is.

    Raises:
        RefusedError: it is no such request, or asks for what is not done here.
    """
    given = _object(body)
    own = {"messages", "max_completion_tokens"} if chat else {"prompt"}
    for name in given.keys() - own - _SETTINGS - _LABELS:
        _require_text(name, "The name of a field", None)
        if name not in _UNMET and given[name] is not None:
            raise RefusedError(f"There is no field {name!r} here: leave it out.", name, "unknown_parameter")
        if given[name] is not None:
            _require_unasked(name, given[name])
    model = _typed(given, "model", str, "a string")
    if model is not None and model != model_name:
        raise RefusedError(
            f"There is no model {model!r} here, only {model_name!r}.", "model", "model_not_found", status=404
        )
    stream = bool(_typed(given, "stream", bool, "true or false"))
    options = _typed(given, "stream_options", dict, "an object") or {}
    for name in options.keys() - {"include_usage"}:
        raise RefusedError(f"stream_options has no field {name!r} here: leave it out.", "stream_options")
    if options and not stream:
        raise RefusedError("stream_options is for a stream: give stream=true, or leave it out.", "stream_options")
    include_usage = bool(_typed(options, "include_usage", bool, "true or false"))
    sampling = _sampling(given, chat)
    if chat:
        return Request(_messages(given.get("messages")), "", sampling, stream, include_usage)
    return Request(None, _prompt(given.get("prompt")), sampling, stream, include_usage)


def _object(body: bytes) -> dict[str, Any]:
    try:
        given = json.loads(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RefusedError(f"The body is not UTF-8: byte {error.start} is {body[error.start]:#04x}.") from None
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise RefusedError(f"The body is not JSON: {reason}.") from None
    if not isinstance(given, dict):
        raise RefusedError("The body must be a JSON object.")
    return given


def _require_unasked(name: str, value: Any) -> None:
    accepted, reason = _UNMET[name]
    if any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in accepted):
        return
    raise RefusedError(f"{name} is not supported, {reason}: leave it out.", name, "unsupported_parameter")


def _sampling(given: dict[str, Any], chat: bool) -> Sampling:
    names = ("max_completion_tokens", "max_tokens") if chat else ("max_tokens",)
    counts = {name: _integer(given, name, 1) for name in names if given.get(name) is not None}
    if len(set(counts.values())) > 1:
        raise RefusedError("max_tokens and max_completion_tokens differ: give one of them.", "max_tokens")
    count = next(iter(counts.values()), None)
    temperature = _number(given, "temperature")
    if temperature is not None and not temperature >= 0:
        raise RefusedError(f"temperature must be at least 0, got {temperature}.", "temperature")
    top_p = _number(given, "top_p")
    if top_p is not None and not 0 < top_p <= 1:
        raise RefusedError(f"top_p must be above 0 and at most 1, got {top_p}.", "top_p")
    seed = _integer(given, "seed", -LARGEST_SEED - 1)
    if seed is not None and seed > LARGEST_SEED:
        raise RefusedError("seed must be below 2**63.", "seed")
    return Sampling(
        max_new_tokens=count,
        temperature=1.0 if temperature is None else temperature,
        top_k=_integer(given, "top_k", 1),
        top_p=top_p,
        seed=None if seed is None else seed % (LARGEST_SEED + 1),  # OpenAI takes negative ones
        stop=_stops(given.get("stop")),
        unasked_new_tokens=None if chat or count is not None else COMPLETION_TOKENS,
    )


def _stops(value: Any) -> tuple[str, ...]:
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > MOST_STOPS or not all(isinstance(s, str) and s for s in stops):
        raise RefusedError(f"stop must be a string or a list of at most {MOST_STOPS} strings, none empty.", "stop")
    return tuple(_text(stop, "stop") for stop in stops)


def _messages(value: Any) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise RefusedError("messages must be a list of at least one message.", "messages")
    return [_message(message, f"messages[{number}]") for number, message in enumerate(value)]


def _message(message: Any, name: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise RefusedError(f"{name} must be an object with role and content.", name)
    role = message.get("role")
    if role not in ROLES:
        known = ", ".join(ROLES)
        more = ": tools are not supported" if role in ("tool", "function") else ""
        raise RefusedError(f"{name}.role must be one of {known}, got {_shown(role)}{more}.", f"{name}.role")
    for field, field_value in message.items():
        _require_text(field, f"The name of a field of {name}", name)
        # Clients send back what an answer held, empty fields included.
        if field not in ("role", "content") and field_value not in (None, []):
            raise RefusedError(f"{name}.{field} is not supported: leave it out.", f"{name}.{field}")
    return {"role": role, "content": _content(message.get("content"), f"{name}.content")}


def _content(value: Any, name: str) -> str:
    if isinstance(value, str):
        return _text(value, name)
    if not isinstance(value, list) or not value:
        raise RefusedError(f"{name} must be a string or a list of text parts.", name)
    texts = []
    for number, part in enumerate(value):
        here = f"{name}[{number}]"
        if not isinstance(part, dict) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, dict) else part
            raise RefusedError(f"{here} must be a part of type 'text', got {_shown(kind)}: text alone is read.", here)
        if not isinstance(part.get("text"), str):
            raise RefusedError(f"{here}.text must be a string.", f"{here}.text")
        texts.append(_text(part["text"], here))
    return "".join(texts)


def _prompt(value: Any) -> str | list[int]:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], (str, list)):
        value = value[0]
    if isinstance(value, str):
        text = _text(value, "prompt")
        if not text:
            raise RefusedError("prompt is empty: give some text.", "prompt")
        return text
    if isinstance(value, list) and value:
        if all(isinstance(token, int) and not isinstance(token, bool) for token in value):
            return value
        if all(isinstance(one, (str, list)) for one in value):
            raise RefusedError("prompt holds several prompts: one prompt a request.", "prompt")
    raise RefusedError("prompt must be a string or a list of token ids.", "prompt")


def _text(value: str, name: str) -> str:
    _require_text(value, name, name)
    return value


def _require_text(value: str, what: str, param: str | None) -> None:
    """JSON can spell half a surrogate pair, which no text holds, no tokenizer reads and no answer can repeat."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RefusedError(f"{what} is not Unicode text: it holds a lone surrogate.", param) from None


def _typed(given: dict[str, Any], name: str, kind: type, words: str) -> Any:
    value = given.get(name)
    if value is not None and not isinstance(value, kind):
        raise RefusedError(f"{name} must be {words}, got {_shown(value)}.", name)
    return value


def _integer(given: dict[str, Any], name: str, least: int) -> int | None:
    value = given.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise RefusedError(f"{name} must be an integer of at least {least}, got {_shown(value)}.", name)
    return value


def _number(given: dict[str, Any], name: str) -> float | None:
    value = given.get(name)
    if value is None:
        return None
    with contextlib.suppress(OverflowError):  # an integer that no float is as large as
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    raise RefusedError(f"{name} must be a number, got {_shown(value)}.", name)


def _shown(value: Any) -> str:
    """A value in an error, short."""
    try:
        text = json.dumps(value)
    except RecursionError:
        return "something nested too deeply"
    return text if len(text) <= 40 else text[:37] + "..."
