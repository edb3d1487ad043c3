"""The cache of an Echo model in Hugging Face's form: one mixer state a layer, and the number of tokens read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from echo_ska.models.configuration_echo import EchoConfig
from echo_ska.nn.mixer import MixerState


class EchoCacheLayer(CacheLayerMixin):
    """The state of one mixer, whichever it is.

    Attributes:
        state: the mixer's state, or None before the first token.
        tokens: tokens read, padding included, as Hugging Face counts them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.state: MixerState | None = None
        self.tokens = 0
        self._inference_mode = False  # whether the state's tensors were made under it

    def store(self, state: MixerState, new_tokens: int) -> None:
        """Keep the state after `new_tokens` more tokens."""
        self.state, self.tokens, self.is_initialized = state, self.tokens + new_tokens, True
        self._inference_mode = torch.is_inference_mode_enabled()

    def changeable_state(self) -> MixerState:
        """The state, to be changed in place; torch forbids that outside of inference mode for tensors made inside."""
        assert self.state is not None
        if self._inference_mode and not torch.is_inference_mode_enabled():
            self.state = self.state.clone()
        self._inference_mode = torch.is_inference_mode_enabled()
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
            self.state = self.state.to("cpu")

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.state is not None:
            self.state = self.state.select_rows(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.state is not None:
            self.state = self.state.map(lambda tensor: tensor.repeat_interleave(repeats, dim=0))


class EchoCache(Cache):
    """All states of an Echo model between two calls: pass it as `past_key_values`.

    A model changes it: calls with several tokens replace the states, calls with one token a row (without gradients)
    update their tensors in place. `copy.deepcopy(cache)` forks it; rows are selected, repeated and reordered into
    memory of their own.

    Args:
        config: of the model whose states it holds.
    """

    layers: list[EchoCacheLayer]

    def __init__(self, config: EchoConfig) -> None:
        super().__init__(layers=[EchoCacheLayer() for _ in config.layer_types])
        self.shape = state_shape(config)
        self._interrupted = False

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

    @property
    def nbytes(self) -> int:
        """Bytes of every live state, all rows of the batch together, as they are stored."""
        return sum(layer.state.nbytes for layer in self.layers if layer.state is not None)

    def compact(self) -> None:
        """Drop what only decoding needs (SKA's inverses, a KV cache's spare room): what is left is to be kept.

        The next token brings it back. `EchoForCausalLM.state_bytes` counts compact states.
        """
        for layer in self.layers:
            if layer.state is not None:
                layer.state = layer.state.compact()

    def require_usable_by(self, config: EchoConfig) -> None:
        """Raise a ValueError, saying why, unless a model of that configuration can go on from here."""
        if self._interrupted:
            raise ValueError(
                "reading a token into past_key_values was interrupted, so some layers have read it and some have not: "
                "start from another cache, or reset() this one"
            )
        wanted = state_shape(config)
        different = [
            f"{name} {self.shape[name]} there, {wanted[name]} here"
            for name in wanted
            if self.shape[name] != wanted[name]
        ]
        if different:
            raise ValueError(f"past_key_values is the cache of another model: {'; '.join(different)}")


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
    )
    return {name: getattr(config, name) for name in names}
