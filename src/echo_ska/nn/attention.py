"""Causal softmax attention: the control that keeps every key and value."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echo_ska.algebra import accumulator_dtype
from echo_ska.nn.mixer import MixerState, SequenceMixer
from echo_ska.nn.packing import run_by_length, sequence_lengths, token_places
from echo_ska.nn.projections import QueryKeyValue, head_width

# While decoding, a full cache gets room for an eighth of its tokens more: copying it whole is then a small part of
# reading it whole, which every step does.
GROWTH = 8
LEAST_ROOM = 16


@dataclasses.dataclass
class KeyValueState(MixerState):
    """The key-value cache of N sequences; it grows with every token.

    Attributes:
        convolution: [N, conv_kernel - 1, 3 H D], the last inputs of the short convolution.
        key, value: [N, L, H, D], keys already rotated; row n is filled up to lengths[n], and zero from there on.
        lengths: tokens read, [N], int64.
    """

    convolution: Tensor
    key: Tensor
    value: Tensor
    lengths: Tensor

    def compact(self) -> KeyValueState:
        """Without the room that `step` has made for tokens to come."""
        longest = int(self.lengths.max()) if len(self.lengths) else 0
        if longest == self.key.shape[1]:
            return self
        return dataclasses.replace(self, key=self.key[:, :longest], value=self.value[:, :longest]).clone()


class FreshTokens(NamedTuple):
    """What a call brings: N sequences, dense [B, T, ...] with B = N or packed [1, T, ...].

    Attributes:
        query, key, value: [B, T, H, D], queries and keys rotated.
        tail: the short convolution's last inputs, or None.
        sequences, positions: the sequence that each token belongs to and its position in that, [B, T].
        past, new: tokens read before and in this call, [N].
    """

    query: Tensor
    key: Tensor
    value: Tensor
    tail: Tensor | None
    sequences: Tensor
    positions: Tensor
    past: Tensor
    new: Tensor


class RotaryAttention(SequenceMixer):
    """Base of the mixers that attend by softmax: projections with SKA's aids, rotary positions, one output projection.

    They get the same aids as SKA (`QueryKeyValue`: short convolutions, delayed keys, W_q started as W_k), so that a
    comparison compares the ways of remembering alone. Source of the rotation: Su et al., arXiv 2104.09864.

    Args:
        hidden_size: d.
        num_heads: H.
        head_dim: D, even; None = hidden_size / num_heads.
        conv_kernel, key_delay, tied_start: see `QueryKeyValue`.
        rope_theta: base of the rotary frequencies; None leaves positions out, so that the order of what was read does
            not matter.

    Raises:
        ValueError: `head_dim` is odd (with positions), or missing where num_heads does not divide hidden_size.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        num_heads: int,
        head_dim: int | None = None,
        conv_kernel: int | None = 4,
        key_delay: int = 1,
        tied_start: bool = True,
        rope_theta: float | None = 10_000.0,
    ) -> None:
        super().__init__()
        head_dim = head_width(hidden_size, num_heads, head_dim)
        if rope_theta is not None and head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary positions, got {head_dim}")
        self.hidden_size, self.num_heads, self.head_dim = hidden_size, num_heads, head_dim
        self.rope_theta = rope_theta
        self.qkv = QueryKeyValue(
            hidden_size,
            num_heads=num_heads,
            key_dim=head_dim,
            value_dim=head_dim,
            conv_kernel=conv_kernel,
            key_delay=key_delay,
            tied_start=tied_start,
        )
        self.o_proj = nn.Linear(num_heads * head_dim, hidden_size, bias=False)

    def fresh_tokens(
        self, hidden_states: Tensor, state: Any, cu_seqlens: Tensor | None, output_state: bool
    ) -> FreshTokens:
        """A call's own queries, keys and values, rotated; see `forward` for the arguments."""
        self.check_inputs(hidden_states, state, cu_seqlens)
        query, key, value, tail = self.qkv(
            hidden_states,
            None if state is None else state.convolution,
            cu_seqlens=cu_seqlens,
            output_state=output_state,
        )
        new = sequence_lengths(hidden_states, cu_seqlens)  # [N]
        past = torch.zeros_like(new) if state is None else state.lengths
        sequences, places = token_places(hidden_states, cu_seqlens)
        positions = past[sequences] + places  # [B, T]
        query, key = (rotated(vectors, positions, self.rope_theta) for vectors in (query, key))
        return FreshTokens(query, key, value, tail, sequences, positions, past, new)

    def advance_in(self, hidden_states: Tensor, state: Any, slots: Tensor, seen: Tensor) -> Tensor:
        """Write one token a row into `slots` [N, 1] of the cache and attend to the places that are `seen` [N, L]."""
        query, key, value = (
            tensor.unsqueeze(1) for tensor in self.qkv.step(hidden_states.squeeze(1), state.convolution)
        )  # [N, 1, H, D]
        query, key = (rotated(vectors, state.lengths[:, None], self.rope_theta) for vectors in (query, key))
        rows = torch.arange(len(state.lengths), device=key.device)[:, None]
        state.key.index_put_((rows, slots), key.to(state.key.dtype))
        state.value.index_put_((rows, slots), value.to(state.value.dtype))
        attended = F.scaled_dot_product_attention(
            query.transpose(1, 2),
            state.key.to(query.dtype).transpose(1, 2),
            state.value.to(query.dtype).transpose(1, 2),
            attn_mask=seen[:, None, None],
        )  # [N, H, 1, D]
        state.lengths.add_(1)
        return self.o_proj(attended.transpose(1, 2).flatten(-2))

    def empty_cache(
        self, batch_size: int, places: int, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> dict[str, Tensor]:
        """Fields of a state with room for so many tokens, none of them read yet."""
        weight = self.o_proj.weight
        device, dtype = device or weight.device, dtype or weight.dtype
        empty = torch.zeros(batch_size, places, self.num_heads, self.head_dim, device=device, dtype=dtype)
        return {
            "convolution": self.qkv.init_tail(batch_size, device=device, dtype=dtype),
            "key": empty,
            "value": empty.clone(),
            "lengths": torch.zeros(batch_size, device=device, dtype=torch.int64),
        }


class SoftmaxAttention(RotaryAttention):
    """Multi-head causal attention with rotary positions, through `scaled_dot_product_attention`.

    Args and errors: see `RotaryAttention`.
    """

    def forward(
        self,
        hidden_states: Tensor,
        state: KeyValueState | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        output_state: bool = False,
    ) -> tuple[Tensor, KeyValueState | None]:
        """Mix along time; see `SequenceMixer.forward`."""
        query, key, value, tail, sequences, positions, past, new = self.fresh_tokens(
            hidden_states, state, cu_seqlens, output_state
        )
        if state is None:
            (attended,) = run_by_length(_attend, (), (query, key, value), cu_seqlens)
        if state is not None or (output_state and cu_seqlens is not None):
            ends = (past + new).cpu()  # on the host, where they say what to cut
            before = self.init_state(len(ends), device=key.device, dtype=key.dtype) if state is None else state
            key, value = (
                _append(cached, fresh, sequences, positions, ends)
                for cached, fresh in ((before.key, key), (before.value, value))
            )  # [N, L, H, D]
        if state is not None:
            (attended,) = run_by_length(_attend_to_cache, (ends, key, value), (query, positions), cu_seqlens, ends)
        mixed = self.o_proj(attended.flatten(-2))
        if tail is None:
            return mixed, None
        # Contiguous: what is still a slice of all projections would keep them in memory.
        return mixed, KeyValueState(tail, key.contiguous(), value.contiguous(), past + new)

    def prepare(self, state: KeyValueState) -> None:
        """Make room for one token more in `state`."""
        capacity = state.key.shape[1]
        # Without spare room, the longest row is the only one that can be full.
        if capacity == 0 or bool((state.lengths >= capacity).any()):
            room = max(capacity // GROWTH, LEAST_ROOM)
            state.key = F.pad(state.key, (0, 0, 0, 0, 0, room))
            state.value = F.pad(state.value, (0, 0, 0, 0, 0, room))

    def advance(self, hidden_states: Tensor, state: KeyValueState) -> Tensor:
        """Write one token a row into its place and attend to all before it; see `SequenceMixer.advance`."""
        places = state.lengths[:, None]
        return self.advance_in(
            hidden_states, state, places, torch.arange(state.key.shape[1], device=places.device) <= places
        )

    def init_state(
        self, batch_size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> KeyValueState:
        return KeyValueState(**self.empty_cache(batch_size, 0, device, dtype))

    def state_bytes(self, length: int) -> int:
        a_token = 2 * self.num_heads * self.head_dim * self.o_proj.weight.element_size()
        return self.init_state(1, device="meta").nbytes + length * a_token


def rotated(vectors: Tensor, positions: Tensor, theta: float | None) -> Tensor:
    """Channel pairs (i, i + D/2) of `vectors` [N, T, H, D], rotated by position [N, T] * theta^(-2i/D); None: as is."""
    if theta is None:
        return vectors
    half = vectors.shape[-1] // 2
    precise = accumulator_dtype(vectors.device)  # at position 1,000,000 a float32 angle is off by 0.06
    exponents = torch.arange(half, device=vectors.device, dtype=precise) / half
    angles = positions[..., None, None].to(precise) * theta**-exponents  # [N, T, 1, D/2]
    cos, sin = angles.cos().to(vectors.dtype), angles.sin().to(vectors.dtype)
    left, right = vectors.split(half, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> tuple[Tensor]:
    """[N, T, H, D] over keys and values [N, L, H, D] under a mask [N, 1, T, L]; without one, causal where T > 1."""
    attended = F.scaled_dot_product_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attn_mask=mask,
        is_causal=mask is None and query.shape[1] > 1,
    )
    return (attended.transpose(1, 2),)


def _attend_to_cache(ends: Tensor, key: Tensor, value: Tensor, query: Tensor, positions: Tensor) -> tuple[Tensor]:
    """`query` [N, T, H, D] at `positions` [N, T] over the first ends[n] places of a cache [N, L, H, D]."""
    longest = int(ends.max()) if len(ends) else 0
    mask = None
    if query.shape[1] > 1 or bool((ends < longest).any()):
        mask = (torch.arange(longest, device=key.device) <= positions[..., None]).unsqueeze(1)  # [N, 1, T, longest]
    return _attend(query, key[:, :longest], value[:, :longest], mask)


def _append(cached: Tensor, fresh: Tensor, sequences: Tensor, positions: Tensor, ends: Tensor) -> Tensor:
    """`fresh` [B, T, H, D] written to its `sequences` and `positions` [B, T] of `cached` [N, L, H, D], up to `ends`."""
    if len(fresh) == len(cached) and bool((ends == cached.shape[1] + fresh.shape[1]).all()):
        return torch.cat([cached, fresh], dim=1)
    room = F.pad(cached, (0, 0, 0, 0, 0, int(ends.max()) - cached.shape[1]))
    return room.index_put((sequences, positions), fresh.to(cached.dtype))
