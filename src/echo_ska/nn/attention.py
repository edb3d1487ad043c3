"""Causal softmax attention: the control that keeps every key and value."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echo_ska.algebra import TensorRecord, accumulator_dtype
from echo_ska.nn.mixer import SequenceMixer
from echo_ska.nn.packing import pad_packed, sequence_lengths, unpad
from echo_ska.nn.projections import QueryKeyValue, head_width


@dataclasses.dataclass
class KeyValueState(TensorRecord):
    """The key-value cache of N sequences; it grows with every token.

    Attributes:
        convolution: [N, conv_kernel - 1, 3 H D], the last inputs of the short convolution.
        key, value: [N, L, H, D], keys already rotated; row n is filled up to lengths[n].
        lengths: tokens read, [N], int64.
    """

    convolution: Tensor
    key: Tensor
    value: Tensor
    lengths: Tensor


class SoftmaxAttention(SequenceMixer):
    """Multi-head causal attention with rotary positions, through `scaled_dot_product_attention`.

    It gets the same aids as SKA (`QueryKeyValue`: short convolutions, delayed keys, W_q started as W_k), so that
    a comparison compares the ways of remembering alone. Source of the rotation: Su et al., arXiv 2104.09864.

    Args:
        hidden_size: d.
        num_heads: H.
        head_dim: D, even; None = hidden_size / num_heads.
        conv_kernel, key_delay: see `QueryKeyValue`.
        rope_theta: base of the rotary frequencies.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        num_heads: int,
        head_dim: int | None = None,
        conv_kernel: int | None = 4,
        key_delay: int = 1,
        rope_theta: float = 10_000.0,
    ) -> None:
        super().__init__()
        head_dim = head_width(hidden_size, num_heads, head_dim)
        if head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary positions, got {head_dim}")
        self.num_heads, self.head_dim, self.rope_theta = num_heads, head_dim, rope_theta
        self.qkv = QueryKeyValue(
            hidden_size,
            num_heads=num_heads,
            key_dim=head_dim,
            value_dim=head_dim,
            conv_kernel=conv_kernel,
            key_delay=key_delay,
        )
        self.o_proj = nn.Linear(num_heads * head_dim, hidden_size, bias=False)

    def forward(
        self,
        hidden_states: Tensor,
        state: KeyValueState | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        output_state: bool = False,
    ) -> tuple[Tensor, KeyValueState | None]:
        """Mix along time; see `SequenceMixer.forward`."""
        self.check_inputs(hidden_states, state, cu_seqlens)
        query, key, value, tail = self.qkv(
            hidden_states,
            None if state is None else state.convolution,
            cu_seqlens=cu_seqlens,
            output_state=output_state,
        )
        new = sequence_lengths(hidden_states, cu_seqlens)  # [N]
        past = torch.zeros_like(new) if state is None else state.lengths
        if cu_seqlens is not None:
            query, key, value = (pad_packed(tensor, cu_seqlens) for tensor in (query, key, value))  # [N, T, H, D]
        positions = past[:, None] + torch.arange(query.shape[1], device=query.device)  # [N, T]
        query, key = self._rotate(query, positions), self._rotate(key, positions)
        mask = None
        if state is not None:
            longest = int((past + new).max())
            key = _append(state.key, past, key, positions, longest)
            value = _append(state.value, past, value, positions, longest)
        if state is not None and (query.shape[1] > 1 or bool((past != past[:1]).any())):
            columns = torch.arange(key.shape[1], device=key.device)
            mask = (columns <= positions[..., None]).unsqueeze(1)  # [N, 1, T, L]
        attended = F.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            attn_mask=mask,
            is_causal=mask is None and query.shape[1] > 1,
        ).transpose(1, 2)  # [N, T, H, D]
        if cu_seqlens is not None:
            attended = unpad(attended, cu_seqlens)
        mixed = self.o_proj(attended.flatten(-2))
        return mixed, KeyValueState(tail, key, value, past + new) if tail is not None else None

    def init_state(
        self, batch_size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> KeyValueState:
        weight = self.o_proj.weight
        device, dtype = device or weight.device, dtype or weight.dtype
        empty = torch.zeros(batch_size, 0, self.num_heads, self.head_dim, device=device, dtype=dtype)
        return KeyValueState(
            convolution=self.qkv.init_tail(batch_size, device=device, dtype=dtype),
            key=empty,
            value=empty.clone(),
            lengths=torch.zeros(batch_size, device=device, dtype=torch.int64),
        )

    def state_bytes(self, length: int) -> int:
        a_token = 2 * self.num_heads * self.head_dim * self.o_proj.weight.element_size()
        return self.init_state(1, device="meta").nbytes + length * a_token

    def _rotate(self, vectors: Tensor, positions: Tensor) -> Tensor:
        """Rotate channel pairs (i, i + D/2) of [N, T, H, D] by position * theta^(-2i/D)."""
        half = self.head_dim // 2
        precise = accumulator_dtype(vectors.device)  # at position 1,000,000 a float32 angle is off by 0.06
        exponents = torch.arange(half, device=vectors.device, dtype=precise) / half
        angles = positions[..., None, None].to(precise) * self.rope_theta**-exponents  # [N, T, 1, D/2]
        cos, sin = angles.cos().to(vectors.dtype), angles.sin().to(vectors.dtype)
        left, right = vectors.split(half, dim=-1)
        return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)


def _append(cached: Tensor, past: Tensor, fresh: Tensor, positions: Tensor, length: int) -> Tensor:
    """`fresh` [N, T, H, D] written behind the first past[n] rows of `cached` [N, L, H, D]; cut at `length`."""
    if bool((past == cached.shape[1]).all()):
        return torch.cat([cached, fresh], dim=1)
    room = F.pad(cached, (0, 0, 0, 0, 0, int(positions.max()) + 1 - cached.shape[1]))
    rows = torch.arange(len(past), device=cached.device)[:, None].expand_as(positions)
    return room.index_put((rows, positions), fresh)[:, :length]
