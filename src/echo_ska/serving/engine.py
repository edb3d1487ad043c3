"""From a prompt to an answer: what is known of the prompt is not read again, the rest is read once."""

from __future__ import annotations

import copy
import logging
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from echo_ska.evaluation.sampling import Reading, end_tokens, read_on, write_on
from echo_ska.evaluation.streaming import TextStream
from echo_ska.memory import ContextState, ContextStore, model_fingerprint
from echo_ska.memory.fingerprint import as_unchanged
from echo_ska.memory.index import DamagedIndexError
from echo_ska.models import EchoForCausalLM
from echo_ska.serving.protocol import RefusedError, Request, Sampling
from echo_ska.serving.stops import StopStrings

logger = logging.getLogger(__name__)

SEGMENT_LENGTH = 1024
"""Tokens of a prompt that are read in one call; whether the client is still there is asked between two."""


class CancelledAnswerError(Exception):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True)
class Prompt:
    """A prompt's tokens.

    Attributes:
        ids: int64 [T], T >= 1.
        kept_at: ascending numbers of tokens, T the last: after so many the state is kept.
    """

    ids: Tensor
    kept_at: tuple[int, ...]


@dataclass(frozen=True)
class Outcome:
    """How an answer ended.

    Attributes:
        prompt_tokens: of the prompt.
        cached_tokens: those that were found in the store and not read.
        completion_tokens: that were drawn, without the end token.
        finish_reason: "stop": the model or a stop string ended it; "length": it was cut.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    finish_reason: str


class Engine:
    """A model that answers prompts.

    `prepare` may be called from any thread, `answer` from one at a time.

    Args:
        model: in evaluation mode; every layer of it has a state. It is not to change from now on: its fingerprint is
            taken once, here.
        tokenizer: the model's.
        name: what clients call the model.
        store: where states of prompts are kept and found; None keeps none.
        max_prompt_tokens: longer prompts are refused.
        max_new_tokens: requests for longer answers are refused.

    Raises:
        ValueError: a model without a state, or a limit below 1.
    """

    def __init__(
        self,
        model: EchoForCausalLM,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        store: ContextStore | None = None,
        *,
        max_prompt_tokens: int = 131_072,
        max_new_tokens: int = 1024,
    ) -> None:
        if not model.has_state:
            raise ValueError("a model with a layer that reads the whole sequence at once cannot write token by token")
        for limit, value in (("max_prompt_tokens", max_prompt_tokens), ("max_new_tokens", max_new_tokens)):
            if value < 1:
                raise ValueError(f"{limit} must be at least 1, got {value}")
        self.name, self.store = name, store
        self.max_prompt_tokens, self.max_new_tokens = max_prompt_tokens, max_new_tokens
        self.fingerprint = model_fingerprint(model)
        self._model, self._tokenizer = model, tokenizer
        # Encoding may change a tokenizer's settings for the call: decoding must not meet it halfway.
        self._encoder, self._encoding = copy.deepcopy(tokenizer), threading.Lock()

    def prepare(self, request: Request) -> Prompt:
        """The tokens of a request's prompt.

        Raises:
            RefusedError: it is too long, empty, not of this model's tokens, or a longer answer is asked for than is
                given.
        """
        asked = request.sampling.max_new_tokens
        if asked is not None and asked > self.max_new_tokens:
            raise RefusedError(
                f"max_tokens is {asked}: this server writes at most {self.max_new_tokens} tokens an answer "
                "(--max-new-tokens).",
                "max_tokens",
            )
        param = "messages" if request.is_chat else "prompt"
        kept_at: list[int] = []
        if request.messages is not None:
            with self._encoding:
                ids, kept_at = self._chat(request.messages)
        elif isinstance(request.prompt, str):
            with self._encoding:
                ids = self._encode(request.prompt)
        else:
            ids = request.prompt
            size = self._model.config.vocab_size
            if not all(0 <= token < size for token in ids):
                raise RefusedError(f"prompt holds ids that are no tokens: they are from 0 to {size - 1}.", param)
        if not ids:
            raise RefusedError(f"{param} has no token: give some text.", param)
        if len(ids) > self.max_prompt_tokens:
            raise RefusedError(
                f"{param} has {len(ids)} tokens: this server reads at most {self.max_prompt_tokens} "
                "(--max-prompt-tokens).",
                param,
                "context_length_exceeded",
            )
        return Prompt(torch.tensor(ids, dtype=torch.int64, device="cpu"), (*kept_at, len(ids)))

    def answer(
        self, prompt: Prompt, sampling: Sampling, write: Callable[[str], None], is_cancelled: Callable[[], bool]
    ) -> Outcome:
        """Read a prompt and write its answer.

        Args:
            prompt: of `prepare`.
            sampling: how it is drawn; at most this server's `max_new_tokens` are.
            write: called with each piece of the text, none empty; together they are the answer.
            is_cancelled: asked between two tokens, and between two segments of the prompt.

        Raises:
            CancelledAnswerError: `is_cancelled()` said so.
        """

        def check(*_: int) -> None:
            if is_cancelled():
                raise CancelledAnswerError

        check()
        with as_unchanged(self._model, self.fingerprint):
            reading, cached = self._read(prompt, check)
        most = sampling.max_new_tokens
        if most is None:
            most = min(self.max_new_tokens, sampling.unasked_new_tokens or self.max_new_tokens)
        stream, stops = TextStream(self._tokenizer), StopStrings(sampling.stop)
        count = 0
        for token in write_on(
            self._model,
            reading,
            most,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            stop_token=end_tokens(self._model, self._tokenizer),
            seed=secrets.randbits(63) if sampling.seed is None else sampling.seed,
        ):
            count += 1
            check()
            if piece := stops.push(stream.push(token)):
                write(piece)
            if stops.found:
                break
        if piece := stops.push(stream.close()) + stops.close():
            write(piece)
        reason = "stop" if stops.found or count < most else "length"
        return Outcome(len(prompt.ids), cached, count, reason)

    def _read(self, prompt: Prompt, check: Callable[..., None]) -> tuple[Reading, int]:
        """The prompt's state, ready to write on from, and how many of its tokens the store knew.

        A prompt is cut at the same places whether the store knows its beginning or not: where what it knows ends at one
        of them, and was cut likewise, the state is the same to the bit. Where it ends elsewhere (the turn before, say),
        the rest is read in other pieces, and the state is the same up to rounding.
        """
        state, cached = self._find(prompt.ids)
        known = cached
        for end in prompt.kept_at:
            if end > known:
                new = prompt.ids[known:end]
                state = ContextState.read(self._model, new, state, segment_length=SEGMENT_LENGTH, progress=check)
                self._keep(state)
                known = end
        assert state is not None
        last = torch.tensor([state.last_token], device="cpu")
        return read_on(self._model, [last], past_key_values=state.cache(self._model.device)), cached

    def _find(self, ids: Tensor) -> tuple[ContextState | None, int]:
        if self.store is None:
            return None, 0
        try:
            return self.store.find(self._model, ids) or (None, 0)
        except (OSError, DamagedIndexError) as error:  # the latter where it could not be made anew
            logger.warning("the store of contexts cannot be read now: %s", error)
            return None, 0

    def _keep(self, state: ContextState) -> None:
        if self.store is None:
            return
        try:
            self.store.put(state)
        except (OSError, ValueError) as error:  # the answer matters more
            logger.warning("%s", error)

    def _chat(self, messages: list[dict[str, str]]) -> tuple[list[int], list[int]]:
        """The ids of a conversation up to the answer; and where its leading system messages end, if a cut is there."""
        if self._encoder.chat_template is None:
            raise RefusedError("The tokenizer of this model has no chat template: use /v1/completions.", "messages")
        text = self._conversation(messages, True)
        ids = self._encode(text)
        leading = 0
        while leading < len(messages) and messages[leading]["role"] in ("system", "developer"):
            leading += 1
        if not 0 < leading < len(messages):
            return ids, []
        try:
            beginning = self._encode(self._conversation(messages[:leading], False))
        except RefusedError:  # some templates refuse a conversation without a question
            return ids, []
        cut = len(beginning)
        return ids, [cut] if 0 < cut < len(ids) and ids[:cut] == beginning else []

    def _conversation(self, messages: list[dict[str, str]], answer_follows: bool) -> str:
        try:
            return str(
                self._encoder.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer_follows)
            )
        except (TemplateError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise RefusedError(
                f"The model's chat template does not take these messages: {reason}.", "messages"
            ) from None

    def _encode(self, text: str) -> list[int]:
        return list(self._encoder(text, add_special_tokens=False, verbose=False)["input_ids"])
