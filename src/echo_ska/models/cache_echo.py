"""The cache of an Echo model in Hugging Face's form: one mixer state a layer, and the number of tokens read."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from echo_ska.algebra import TensorRecord
from echo_ska.models.configuration_echo import EchoConfig


class EchoCacheLayer(CacheLayerMixin):
    """The state of one mixer, whichever it is.

    Attributes:
        state: the mixer's state, or None before the first token.
        tokens: tokens read, padding included, as Hugging Face counts them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.state: TensorRecord | None = None
        self.tokens = 0

    def store(self, state: TensorRecord, new_tokens: int) -> None:
        """Keep the state after `new_tokens` more tokens."""
        self.state, self.tokens, self.is_initialized = state, self.tokens + new_tokens, True

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

    Args:
        config: of the model whose states it holds.
    """

    layers: list[EchoCacheLayer]

    def __init__(self, config: EchoConfig) -> None:
        super().__init__(layers=[EchoCacheLayer() for _ in config.layer_types])
        self.shape = state_shape(config)

    @property
    def nbytes(self) -> int:
        """Bytes of every live state, all rows of the batch together."""
        return sum(layer.state.nbytes for layer in self.layers if layer.state is not None)

    def require_shape_of(self, config: EchoConfig) -> None:
        """Raise a ValueError, naming what differs, unless a model of that configuration can go on from here."""
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
