"""SKA in the place of a Hugging Face decoder's attention: its call, its masks, its cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from echo_ska.models.cache_echo import EchoCacheLayer
from echo_ska.models.padding import scatter
from echo_ska.nn import SpectralKoopmanAttention


class ReplacedCacheLayer(EchoCacheLayer):
    """An SKA layer's state in a `DynamicCache`, in the place of keys and values."""

    # Not "sliding", but what that means to Hugging Face's masks: while another layer sees all tokens, masks are made
    # for that one; where all layers are SKA, a mask has a column for each new token and none for those read before.
    is_sliding = True
    is_croppable = False

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, self.tokens

    def crop(self, tokens_to_remove: int) -> None:
        """Nothing can be taken back. Layers before this one have been cropped by then: begin again with a new cache.

        Raises:
            ValueError: for anything but 0.
        """
        if tokens_to_remove:
            raise ValueError(
                "an SKA layer in the place of attention cannot take tokens back, as drafts (prompt lookup, assistants) "
                "need it: generate without them"
            )


class ReplacedAttention(nn.Module):
    """An SKA layer with the signature of a Hugging Face decoder's attention.

    Args:
        mixer: the layer.
        layer_idx: its place among the model's layers, and in a cache.
        dropout: of the output, a probability.
    """

    def __init__(self, mixer: SpectralKoopmanAttention, layer_idx: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.mixer, self.layer_idx = mixer, layer_idx
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: Any = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        position_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Mix along time.

        Args:
            hidden_states: [B, T, d].
            position_embeddings: not used, since the layer has no positions.
            attention_mask: what the host has made of its padding mask: None, [B, L], or [B, 1, T, L] of booleans or of
                0 and large negative numbers; the last T columns are those of the new tokens. Padding is taken out, so
                that it changes nothing; the output there is 0. Earlier columns are not read: what a cache holds is
                read whole.
            past_key_values: a `DynamicCache`, which holds this layer's state from its first call on.
            position_ids: [B, T]; refused where they restart inside a row.
            kwargs: what hosts pass besides is not used.

        Returns:
            The output [B, T, d], and None where attention has its weights.

        Raises:
            ValueError: a mask that is not a padding mask, packed sequences, or a cache of another kind or model.
        """
        if kwargs.get("cu_seq_lens_q") is not None:
            raise ValueError("cu_seq_lens_q packs sequences into a row: give each a row of its own")
        layer = None if past_key_values is None else _layer_of(past_key_values, self.layer_idx)
        state = None if layer is None else layer.state
        real = padding(attention_mask, position_ids, hidden_states)
        time = hidden_states.shape[1]
        here = not any(parameter.is_meta for parameter in self.mixer.parameters())  # not offloaded: hooks see `forward`
        alone = layer is not None and state is not None and time == 1 and real is None
        if layer is not None and alone and here and not torch.is_grad_enabled():
            own = layer.changeable_state()
            mixed = self.mixer.step(hidden_states, own)
            layer.tokens += 1
            return self.dropout(mixed), None
        boundaries, packed = None, hidden_states
        if real is not None:
            lengths = real.sum(dim=1)
            boundaries = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
            packed = hidden_states[real].unsqueeze(0)
        mixed, after = self.mixer(packed, state, cu_seqlens=boundaries, output_state=layer is not None)
        if layer is not None:
            layer.store(after, time)
        if real is not None:
            mixed = scatter(mixed, real, time)
        return self.dropout(mixed), None


def padding(attention_mask: Tensor | None, position_ids: Tensor | None, hidden_states: Tensor) -> Tensor | None:
    """Which of the new tokens [B, T] are real, or None where all are; see `ReplacedAttention.forward`."""
    batch, time = hidden_states.shape[:2]
    if attention_mask is None and (time == 1 or position_ids is None):
        return None  # before anything is asked of a GPU, which would be waited for
    real = torch.ones(batch, time, dtype=torch.bool, device=hidden_states.device)
    if attention_mask is not None:
        if not isinstance(attention_mask, Tensor) or attention_mask.dim() not in (2, 4):
            raise ValueError(
                f"attention_mask must be [batch, tokens], got {type(attention_mask).__name__}: load the model with "
                'attn_implementation="sdpa" or "eager"'
            )
        seen = attention_mask if attention_mask.dtype == torch.bool else attention_mask == 0
        if attention_mask.dim() == 2:
            real = attention_mask[:, -time:].bool().expand(batch, -1)
        else:
            if attention_mask.shape[1] != 1:
                raise ValueError("attention_mask differs by head: an SKA layer reads every token before in all heads")
            seen = seen[:, 0, :, seen.shape[-1] - time :].expand(batch, -1, -1)  # [B, T, T]
            real = seen.diagonal(dim1=1, dim2=2)
            causal = torch.ones(time, time, dtype=torch.bool, device=seen.device).tril() & real[:, None]
            if bool((seen != causal)[real].any()):
                raise ValueError(
                    "attention_mask must be a padding mask, 1 for tokens and 0 for padding: an SKA layer reads every "
                    "token before, so packed sequences and other patterns need rows of their own"
                )
    if position_ids is not None and time > 1:
        restarts = (position_ids.diff(dim=-1) <= 0).expand(batch, -1)
        if bool((restarts & real[:, 1:] & real[:, :-1]).any()):
            raise ValueError("position_ids restart inside a row: give each packed sequence a row of its own")
    return None if bool(real.all()) else real


def _layer_of(cache: Cache, index: int) -> ReplacedCacheLayer:
    """The layer of `cache` that holds an SKA state, put there in the place of one that holds nothing yet."""
    if type(cache) is not DynamicCache:
        raise ValueError(
            f"past_key_values must be a DynamicCache, got {type(cache).__name__}: leave cache_implementation out"
        )
    while len(cache.layers) <= index:
        cache.layers.append(DynamicLayer())
    layer = cache.layers[index]
    if not isinstance(layer, ReplacedCacheLayer):
        if layer.get_seq_length():
            raise ValueError(
                f"past_key_values holds keys and values in layer {index}, which is SKA here: it is another model's"
            )
        cache.layers[index] = layer = ReplacedCacheLayer()
    return layer
