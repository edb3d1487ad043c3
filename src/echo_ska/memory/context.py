"""What a model keeps of a context, as a value: read once, forked, saved, and gone on from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from echo_ska.memory import encoding
from echo_ska.memory.fingerprint import configuration_of, function_fields, model_fingerprint, require_same_model
from echo_ska.memory.token_ids import EMPTY_HASH, prefix_hashes, token_ids
from echo_ska.models import EchoCache, EchoForCausalLM
from echo_ska.models.eval_mode import in_eval_mode
from echo_ska.models.segments import SEGMENT_LENGTH, read_in_segments
from echo_ska.sealed import read_sealed_folder, write_sealed_folder

FORMAT = 2
KIND = "context"

Progress = Callable[[int, int], None]
"""Called with the tokens read so far and all that are to be read."""

# What `generate` is told by the context itself, or what would mean something else here.
_NOT_TAKEN = {
    "past_key_values": "the context is the past",
    "attention_mask": "a context is one sequence without padding",
    "inputs": "give input_ids",
    "inputs_embeds": "give input_ids",
    "max_length": "it would count some tokens and not others: give max_new_tokens",
    "min_length": "it would count some tokens and not others: give min_new_tokens",
}


class ContextState:
    """A language model's state after one sequence of tokens; nothing that is done with it changes it.

    It holds the model's compact cache of all tokens but the last, and the last one's id, so that going on needs no
    stored logits. Its size does not depend on the length, unless the model has softmax attention. SKA's float64 sums
    are rounded to 48 of their 64 bits each time a context is read or read on from a parent (a relative change of 7e-12
    at most each time; not for a float64 model), so that memory, file and every copy hold the same numbers.

    Make one with `ContextState.read` or `ContextState.load`.

    Attributes:
        tokens: how many were read.
        token_hash: of their ids: see `echo_ska.memory.token_ids.prefix_hashes`.
        last_token: the last one's id.
        fingerprint: `model_fingerprint` of the model that read them; no other can go on from here.
    """

    def __init__(
        self, cache: EchoCache, last_token: int, token_hash: str, fingerprint: str, fields: dict[str, Any]
    ) -> None:
        self._cache, self._fields = cache, fields
        self._config = configuration_of(fields)
        self.last_token, self.token_hash, self.fingerprint = last_token, token_hash, fingerprint
        self.tokens = cache.get_seq_length() + 1

    def __repr__(self) -> str:
        return f"ContextState({self.tokens:,} tokens, {self.nbytes:,} bytes, model {self.fingerprint[:12]})"

    @classmethod
    @torch.no_grad()
    def read(
        cls,
        model: EchoForCausalLM,
        input_ids: Tensor | Sequence[int],
        parent: ContextState | None = None,
        *,
        segment_length: int = SEGMENT_LENGTH,
        progress: Progress | None = None,
    ) -> ContextState:
        """Read a sequence of any length, segment by segment: activations take memory for one segment.

        The model is in eval mode meanwhile.

        Args:
            model: every layer of it must be able to go on from a state.
            input_ids: [T] or [1, T] integers, or a list; T >= 1.
            parent: the context that comes before them; it stays as it is.
            segment_length: tokens in one forward call, at least 1. It does not change the function.
            progress: called after each segment with the tokens of `input_ids` read, and T.

        Returns:
            The context of the parent's tokens and these.

        Raises:
            ValueError: what cannot be read, or a parent of another model.
        """
        fingerprint = model_fingerprint(model)
        ids = token_ids(input_ids, model.config.vocab_size)
        if not model.has_state:
            raise ValueError("a model with a layer that reads the whole sequence at once has no state to keep")
        if parent is None:
            cache, unread, token_hash = EchoCache(model.config), ids[:-1], EMPTY_HASH
        else:
            cache, token_hash = parent._cache_for(model), parent.token_hash
            unread = torch.cat([torch.tensor([parent.last_token], device="cpu"), ids[:-1]])
        segments = read_in_segments(
            model,
            unread[None].to(model.device),
            segment_length,
            past_key_values=cache,
            more=lambda begin, end: {"logits_to_keep": 1},
        )
        done = 0
        with in_eval_mode(model):
            for begin, _ in segments:
                done = min(begin + segment_length, len(unread))
                if progress is not None:
                    progress(done, len(ids))
        if progress is not None and done < len(ids):  # without a parent, the last token is kept and not read
            progress(len(ids), len(ids))
        kept = encoding.own_copy(cache, model.config)
        encoding.make_symmetric(kept)
        if model.dtype is not torch.float64:
            encoding.shorten(kept)
        token_hash = prefix_hashes(ids, [len(ids)], token_hash)[len(ids)]
        return cls(kept, int(ids[-1]), token_hash, fingerprint, function_fields(model))

    def fork(self) -> ContextState:
        """The same context in memory of its own."""
        return type(self)(self.cache(), self.last_token, self.token_hash, self.fingerprint, dict(self._fields))

    @property
    def nbytes(self) -> int:
        """Bytes of the state as it lives in memory."""
        return self._cache.nbytes

    def bytes_by_kind(self) -> dict[str, int]:
        """The bytes of `nbytes` by the kind of layer: "ska", "mamba2", "attention"."""
        return {name.removeprefix("full_"): size for name, size in self._cache.bytes_by_kind().items()}

    def stored_bytes_by_kind(self) -> dict[str, int]:
        """The same for the tensors that `save` writes; a file's header comes on top."""
        found = dict.fromkeys(self.bytes_by_kind(), 0)
        for name, tensor in encoding.encode(self._cache).items():
            layer = int(name.split(".")[1])
            found[self._config.layer_types[layer].removeprefix("full_")] += tensor.nbytes
        return found

    def cache(self, device: torch.device | str | None = None) -> EchoCache:
        """The cache of all tokens but the last, a copy to generate from; on `device` if given."""
        return encoding.own_copy(self._cache, self._config, device)

    @torch.no_grad()
    def logits(self, model: EchoForCausalLM) -> Tensor:
        """The logits of the token that comes next, [V]. The model is in eval mode meanwhile.

        Raises:
            ValueError: the context is of another model; it says what differs.
        """
        last = torch.tensor([[self.last_token]], device=model.device)
        with in_eval_mode(model):
            return model(last, past_key_values=self._cache_for(model), use_cache=True).logits[0, -1]

    def generate(self, model: EchoForCausalLM, input_ids: Tensor | Sequence[int] | None = None, **settings: Any) -> Any:
        """Go on writing by `model.generate`. The model is in eval mode meanwhile.

        Processors that look at earlier tokens (repetition penalties) see the context's last token and what follows.

        Args:
            model: the one that read the context.
            input_ids: further tokens before the first written one, [T] or [1, T]; read in one call (`read` takes
                long ones, with this context as the parent).
            settings: of Hugging Face's `generate`, such as max_new_tokens, do_sample, num_beams, streamer.

        Returns:
            What `generate` returns, without the context: [rows, T + written] ids, or with
            `return_dict_in_generate=True` an object whose `sequences` are those.

        Raises:
            ValueError: a setting that contradicts the context, or a context of another model.
        """
        given = settings.get("generation_config")

        def asked(name: str) -> Any:
            """As Hugging Face takes a setting: by name, else from the configuration given, else from the model's."""
            found = (settings.get(name), getattr(given, name, None), getattr(model.generation_config, name, None))
            return next((value for value in found if value is not None), None)

        for name, reason in _NOT_TAKEN.items():
            if settings.get(name) is not None:
                raise ValueError(f"generate from a context takes no {name}: {reason}")
            if getattr(given, name, None) is not None:
                raise ValueError(f"generate from a context takes no generation_config with {name}: {reason}")
        for name, instead in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
            if asked(name) and asked(instead) is None:
                raise ValueError(f"the model's generation_config has {name}: {_NOT_TAKEN[name]}")
        if settings.get("use_cache") is False or getattr(given, "use_cache", None) is False:
            raise ValueError("generate from a context takes no use_cache=False: the context is the cache")
        if asked("use_cache") is False:  # the model's own: it is for prompts without a past
            settings["use_cache"] = True
        cache = self._cache_for(model)
        prompt = torch.tensor([self.last_token], device="cpu")
        if input_ids is not None:
            prompt = torch.cat([prompt, token_ids(input_ids, model.config.vocab_size)])
        rows = max(asked(name) or 1 for name in ("num_beams", "num_return_sequences"))
        if rows > 1:
            cache.batch_repeat_interleave(rows)
        # Hugging Face tells new ids from all ids by the mask: of the whole sequence, and longer than what is new.
        mask = torch.ones(1, cache.get_seq_length() + len(prompt), dtype=torch.int64, device=model.device)
        if settings.get("streamer") is not None:
            settings["streamer"] = _WithoutFirst(settings["streamer"])
        with in_eval_mode(model):
            output = model.generate(
                prompt[None].to(model.device), past_key_values=cache, attention_mask=mask, **settings
            )
        if isinstance(output, Tensor):
            return output[:, 1:]
        output.sequences = output.sequences[:, 1:]
        return output

    def save(self, path: str | Path) -> Path:
        """Write the context to a folder that does not exist yet: `state.safetensors` and `context.json`.

        A process killed while it writes leaves no folder of that name. The file is smaller than the state in memory: of
        SKA's symmetric Gram matrices a triangle is written, and of each float64 sum six bytes.

        Raises:
            ValueError: `path` exists.
            OSError: it cannot be written (a full disk, say).
        """
        description = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "model": self._fields,
            "tokens": self.tokens,
            "last_token": self.last_token,
            "token_hash": self.token_hash,
            "bytes_by_kind": self.bytes_by_kind(),
        }
        write_sealed_folder(path, encoding.encode(self._cache), description, KIND)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path, model: EchoForCausalLM | None = None) -> ContextState:
        """Read what `save` wrote; going on from it gives the same bits as going on from what was saved.

        Args:
            path: the folder.
            model: the model to go on with, to be refused here rather than later if it is another one; the state is
                put on its device.

        Raises:
            ValueError: one sentence, if a file is missing or damaged, or the context is of another model.
            OSError: a file cannot be read.
        """
        description, tensors = read_sealed_folder(path, KIND, FORMAT)
        try:
            fields, tokens = description["model"], description["tokens"]
            cache = encoding.decode(configuration_of(fields), tensors, tokens - 1)
            last_token, token_hash = int(description["last_token"]), str(description["token_hash"])
            state = cls(cache, last_token, token_hash, str(description["fingerprint"]), fields)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the context {path} is whole but cannot be understood: {error}") from error
        if model is not None:
            state._cache = state._cache_for(model)
        return state

    def _cache_for(self, model: EchoForCausalLM) -> EchoCache:
        require_same_model(model, self.fingerprint, self._fields)
        return self.cache(model.device)


class _WithoutFirst:
    """A streamer of Hugging Face's that is not handed the first token: it is the context's, not of what was asked for.

    Args:
        streamer: gets the rest of what is put first, which may be nothing, and all that is put after.
    """

    def __init__(self, streamer: Any) -> None:
        self._streamer, self._begun = streamer, False

    def put(self, value: Tensor) -> None:
        self._streamer.put(value if self._begun else value[..., 1:])
        self._begun = True

    def end(self) -> None:
        self._streamer.end()
