"""The cache of an Echo model in Hugging Face's form: one mixer state a layer, and the number of tokens read."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from echo_ska.models.configuration_echo import EchoConfig
from echo_ska.models.rollback import RECENT_TOKENS, Point, Rollback
from echo_ska.nn.mixer import MixerState


class EchoCacheLayer(CacheLayerMixin):
    """The state of one mixer, whichever it is.

    Attributes:
        state: the mixer's state, or None before the first token.
        tokens: tokens read, padding included, as Hugging Face counts them.
        record_past: whether tokens can be taken back; `EchoCache.activate_past_recording` sets it.
    """

    is_croppable = True

    def __init__(self) -> None:
        super().__init__()
        self.state: MixerState | None = None
        self.tokens = 0
        self.record_past = False
        self._shared = False  # whether the state is also that of a point to go back to
        self._inference_mode = False  # whether the state's tensors were made under it
        self._device: torch.device | None = None  # while the state is offloaded, where it came from

    def store(self, state: MixerState, new_tokens: int) -> None:
        """Keep the state after `new_tokens` more tokens."""
        self.state, self.tokens, self.is_initialized = state, self.tokens + new_tokens, True
        self._shared, self._inference_mode = False, torch.is_inference_mode_enabled()

    def share(self) -> MixerState | None:
        """The state, to be kept as it is now: before it is next changed in place, this layer takes a copy."""
        self._shared = True
        return self.state

    def restore(self, state: MixerState | None, tokens: int) -> None:
        """Go back to a state that was shared."""
        self.state, self.tokens, self.is_initialized, self._shared = state, tokens, state is not None, True

    def changeable_state(self) -> MixerState:
        """The state, to be changed in place; torch forbids that outside of inference mode for tensors made inside."""
        assert self.state is not None
        if self._shared or (self._inference_mode and not torch.is_inference_mode_enabled()):
            self.state = self.state.clone()
        self._shared, self._inference_mode = False, torch.is_inference_mode_enabled()
        return self.state

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise NotImplementedError("an Echo layer keeps its mixer's state: use store()")

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("an Echo layer keeps its mixer's state: use store()")

    def get_seq_length(self) -> int:
        return self.tokens

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.tokens + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        self.state, self.tokens, self.is_initialized = None, 0, False

    def offload(self) -> None:
        if self.state is not None:
            self._device = next(iter(self.state.tensors().values())).device
            self.state = self.state.to("cpu")

    def prefetch(self) -> None:
        if self.state is not None and self._device is not None:
            self.state, self._device = self.state.to(self._device), None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.map(_rows(beam_idx))

    def batch_select_indices(self, indices: Tensor) -> None:
        self.map(_rows(indices))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.map(_repeated(repeats))

    def map(self, function: Callable[[Tensor], Tensor]) -> None:
        """Apply `function`, whose results share no memory with their arguments, to every tensor of the state."""
        if self.state is not None:
            self.state = self.state.map(function)
            self._shared, self._inference_mode = False, torch.is_inference_mode_enabled()


class EchoCache(Cache):
    """All states of an Echo model between two calls: pass it as `past_key_values`.

    A model changes it: calls with several tokens replace the states, calls with one token a row (without gradients)
    update their tensors in place. `copy.deepcopy(cache)` forks it; pickled, it leaves behind what `crop` needs. Rows
    are selected, repeated and reordered into memory of their own.

    Tokens can be taken back (`crop`) if that was asked for before they were read, by `activate_past_recording`;
    `generate` asks for it where it decodes with drafts. A cache that nobody asked keeps nothing but its states.

    Args:
        config: of the model whose states it holds.
    """

    layers: list[EchoCacheLayer]

    def __init__(self, config: EchoConfig) -> None:
        super().__init__(layers=[EchoCacheLayer() for _ in config.layer_types])
        self.shape = state_shape(config)
        self._interrupted = False
        self._rollback = Rollback()

    def __deepcopy__(self, memo: dict[int, Any]) -> EchoCache:
        """A fork in memory of its own; gradients flow through its states as through these."""
        held = [tensor for layer in self.layers if layer.state is not None for tensor in layer.state.tensors().values()]
        for tensor in (*held, *self._rollback.tensors()):
            if not tensor.is_leaf and id(tensor) not in memo:  # torch copies no tensor with a history
                memo[id(tensor)] = tensor.clone()
        copied = memo[id(self)] = type(self).__new__(type(self))
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    @property
    def can_step(self) -> bool:
        """Whether a token may be read in place: every layer has a state, and no gradient is to flow through it."""
        return not torch.is_grad_enabled() and all(layer.state is not None for layer in self.layers)

    @contextlib.contextmanager
    def reading_a_token(self) -> Iterator[None]:
        """While the states are changed in place, one after the other, and count one token more at the end."""
        self._interrupted = True
        yield
        self._interrupted = False
        for layer in self.layers:
            layer.tokens += 1

    def reset(self) -> None:
        super().reset()
        self._interrupted = False
        self._rollback.forget()

    def activate_past_recording(self, tokens: int = RECENT_TOKENS) -> None:
        """From now on, keep what `crop` needs.

        The least `tokens` tokens can then be taken back at any time, and everything since the last crop as long as that
        is no more than 4,096 tokens. It takes the memory of at most three more states of every layer (of a softmax
        attention layer, its whole key-value cache) and of the embedded tokens since, a few thousand a row at most.

        Args:
            tokens: >= 1; where it was asked for before, the larger number holds.

        Raises:
            ValueError: `tokens` is below 1.
        """
        if tokens < 1:
            raise ValueError(f"the number of tokens that can be taken back must be at least 1, got {tokens}")
        self._rollback.recent = max(self._rollback.recent, tokens)
        self._set_recording(True)

    def recorder(self) -> Rollback | None:
        """What the next call has to be recorded in; None, and nothing is kept any more, where nobody asked for it."""
        if self.layers[0].record_past:
            return self._rollback
        self._rollback.forget()
        return None

    @contextlib.contextmanager
    def unrecorded(self) -> Iterator[None]:
        """While tokens are read that the record is not to hold."""
        rollback, self._rollback = self._rollback, Rollback()
        self._set_recording(False)
        try:
            yield
        finally:
            self._rollback = rollback
            self._set_recording(True)

    @contextlib.contextmanager
    def restored_on_error(self) -> Iterator[None]:
        """While it is changed in several steps: if one of them fails, it is as it was before the first."""
        start = self.point()
        try:
            yield
        except BaseException:
            self._go_to(start)
            raise

    def point(self) -> Point:
        """The states as they are now. They are not copied until one of them is to be changed in place."""
        return Point(self.get_seq_length(), [layer.share() for layer in self.layers])

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last tokens: the states are those of a cache that has never read them.

        Where tokens of one call are taken back and others of it stay, the model reads those that stay again, in one
        call from the nearest state that was kept: the result is that of reading them in such a call. Afterwards no
        gradient flows through the states.

        Args:
            tokens_to_remove: as Hugging Face gives it, 0 or the NEGATIVE number of tokens, padding included.

        Raises:
            ValueError: the number is positive, or more than can be taken back; the cache is then left alone.
        """
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes the number of tokens to remove as a negative one, got {tokens_to_remove}")
        self._require_whole()
        tokens, rollback = self.get_seq_length(), self.recorder()
        target = tokens + tokens_to_remove
        if rollback is None and tokens_to_remove < 0:
            raise ValueError(
                f"crop({tokens_to_remove}) cannot take back what was not recorded: call activate_past_recording() on "
                "the cache before the tokens are read"
            )
        if rollback is None:
            return
        if tokens_to_remove < 0:
            nearest = rollback.nearest(target)
            if nearest is None:
                raise ValueError(
                    f"crop({tokens_to_remove}) goes back too far: {rollback.farthest(tokens)} of the {tokens} tokens "
                    "read can be taken back; activate_past_recording(tokens=...) before reading keeps more"
                )
            kept = rollback.between(nearest.tokens, target) if nearest.tokens < target else None
            with self.restored_on_error(), self.unrecorded(), torch.no_grad():
                self._go_to(nearest)
                if kept is not None:
                    model, embedded, real = kept
                    model(inputs_embeds=embedded, attention_mask=real, past_key_values=self, use_cache=True)
        rollback.cropped_to(self.point())

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self._rollback.map(_rows(beam_idx))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._rollback.map(_rows(indices))

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._rollback.map(_repeated(repeats))

    def _require_whole(self) -> None:
        if self._interrupted:
            raise ValueError(
                "reading a token into past_key_values was interrupted, so some layers have read it and some have not: "
                "start from another cache, or reset() this one"
            )

    def _go_to(self, point: Point) -> None:
        for layer, state in zip(self.layers, point.states, strict=True):
            layer.restore(state, point.tokens)

    def _set_recording(self, record: bool) -> None:
        for layer in self.layers:
            layer.record_past = record

    @property
    def nbytes(self) -> int:
        """Bytes of every live state, all rows of the batch together, as they are stored."""
        return sum(self.bytes_by_kind().values())

    def bytes_by_kind(self) -> dict[str, int]:
        """The bytes of `nbytes` by the mixer that the configuration's `layer_types` name."""
        found: dict[str, int] = {}
        for layer, name in zip(self.layers, self.shape["layer_types"], strict=True):
            found[name] = found.get(name, 0) + (0 if layer.state is None else layer.state.nbytes)
        return found

    def compact(self) -> None:
        """Drop what only decoding needs (SKA's inverses, a KV cache's spare room): what is left is to be kept.

        The next token brings it back. `EchoForCausalLM.state_bytes` counts compact states.
        """
        for layer in self.layers:
            if layer.state is not None:
                layer.state = layer.state.compact()

    def require_usable_by(self, config: EchoConfig) -> None:
        """Raise a ValueError, saying why, unless a model of that configuration can go on from here."""
        self._require_whole()
        wanted = state_shape(config)
        different = [
            f"{name} {self.shape[name]} there, {wanted[name]} here"
            for name in wanted
            if self.shape[name] != wanted[name]
        ]
        if different:
            raise ValueError(f"past_key_values is the cache of another model: {'; '.join(different)}")


def _rows(indices: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor.index_select(0, indices.to(tensor.device))


def _repeated(repeats: int) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor.repeat_interleave(repeats, dim=0)


def state_shape(config: EchoConfig) -> dict[str, Any]:
    """The fields of a configuration that the shapes and the meaning of its states depend on."""
    names = (
        "layer_types",
        "hidden_size",
        "num_heads",
        "rank",
        "head_dim",
        "state_size",
        "expand",
        "conv_kernel",
        "refresh_interval",
        "rope_theta",
        "sliding_window",
    )
    return {name: None if name in config.unread_fields else getattr(config, name) for name in names}
