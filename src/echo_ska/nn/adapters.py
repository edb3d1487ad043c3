"""The SKA layer with the signatures of flash-linear-attention's layers and of Zoology's mixers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from echo_ska.nn.ska import SpectralKoopmanAttention, SpectralKoopmanState


class FlaSpectralKoopmanAttention(nn.Module):
    """SKA as a layer of flash-linear-attention: their forward signature, their cache, their treatment of padding.

    It needs no part of that package. A state lies in the cache's `recurrent_state`; whoever picks or repeats rows, for
    beam search, does so by its `select_rows` (that package's own cache has no way to).

    Args:
        hidden_size: d.
        num_heads: H.
        rank: width of keys and queries, r.
        layer_idx: the layer's place in a cache; needed where one is used.
        settings: further ones of `SpectralKoopmanAttention`.
    """

    def __init__(
        self, hidden_size: int, *, num_heads: int, rank: int, layer_idx: int | None = None, **settings: Any
    ) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.mixer = SpectralKoopmanAttention(hidden_size, num_heads=num_heads, rank=rank, **settings)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = False,
        output_attentions: bool | None = False,
        *,
        cu_seqlens: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None, Any]:
        """Mix along time.

        Args:
            hidden_states: [B, T, d].
            attention_mask: [B, L], L >= T, of which the last T columns count: 0 marks padding, which is taken out, so
                that it changes nothing; the output there is 0.
            past_key_values: a `fla.models.utils.Cache`, or anything with its `__len__`, `__getitem__` and `update`.
            use_cache: whether to keep the state after the last token in `past_key_values`.
            output_attentions: there are none to return.
            cu_seqlens: [N + 1] boundaries of sequences packed into one row.
            kwargs: what their models pass besides is not used.

        Returns:
            The output [B, T, d], None, and `past_key_values`.

        Raises:
            ValueError: a cache without a layer_idx, a mask that is not [B, L], or a mask together with cu_seqlens.
        """
        state = None
        if past_key_values is not None:
            if self.layer_idx is None:
                raise ValueError("a cache needs the layer's place in it: give layer_idx when you build the layer")
            if len(past_key_values) > self.layer_idx and past_key_values[self.layer_idx] is not None:
                state = past_key_values[self.layer_idx]["recurrent_state"]
        keeps = bool(use_cache) and past_key_values is not None
        time = hidden_states.shape[1]
        real = None if attention_mask is None else _real_tokens(attention_mask, hidden_states)
        if real is not None and bool(real.all()):
            real = None
        if real is not None:
            if cu_seqlens is not None:
                raise ValueError("give cu_seqlens or an attention_mask with padding, not both")
            lengths = real.sum(dim=1)
            cu_seqlens = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
            mixed, new = self.mixer(hidden_states[real].unsqueeze(0), state, cu_seqlens=cu_seqlens, output_state=keeps)
            output = mixed.new_zeros(*real.shape, mixed.shape[-1]).masked_scatter(real.unsqueeze(-1), mixed)
        else:
            output, new = self.mixer(hidden_states, state, cu_seqlens=cu_seqlens, output_state=keeps)
        if keeps:
            past_key_values.update(recurrent_state=new, layer_idx=self.layer_idx, offset=time)
        return output, None, past_key_values


class ZoologySpectralKoopmanAttention(nn.Module):
    """SKA as a mixer of Zoology: `d_model` and `layer_idx` in, one tensor out, and its state counted their way.

    In their configurations: `ModuleConfig(name="echo_ska.nn.adapters.ZoologySpectralKoopmanAttention",
    kwargs={"num_heads": 2, "rank": 16})`.

    Args:
        d_model: d.
        num_heads: H.
        rank: width of keys and queries, r.
        layer_idx: not needed; they pass it to every mixer.
        settings: further ones of `SpectralKoopmanAttention`.
    """

    def __init__(
        self, d_model: int, num_heads: int = 1, rank: int = 16, layer_idx: int | None = None, **settings: Any
    ) -> None:
        super().__init__()
        self.mixer = SpectralKoopmanAttention(d_model, num_heads=num_heads, rank=rank, **settings)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[B, T, d] -> [B, T, d], causal."""
        output, _ = self.mixer(hidden_states)
        return output

    def state_size(self, sequence_length: int = 2048) -> int:
        """Numbers (not bytes) of the recurrent state, whatever the length, without the short convolutions' caches.

        That is their rule. The Gram matrix and the lag moment count in full, and so does the count; at power 0 the
        lag moment is kept, and counted, too.
        """
        state = self.mixer.init_state(1, device="meta")
        assert isinstance(state, SpectralKoopmanState)
        return sum(tensor.numel() for tensor in state.recurrent.tensors().values())


def _real_tokens(attention_mask: Tensor, hidden_states: Tensor) -> Tensor:
    """[B, T] bool."""
    batch, time = hidden_states.shape[:2]
    if attention_mask.dim() != 2 or attention_mask.shape[0] != batch or attention_mask.shape[1] < time:
        raise ValueError(
            f"attention_mask must be [{batch}, {time}] or, with what the cache has read, longer; got "
            f"{list(attention_mask.shape)}: 1 marks a token and 0 padding"
        )
    return attention_mask[:, attention_mask.shape[1] - time :].bool()
