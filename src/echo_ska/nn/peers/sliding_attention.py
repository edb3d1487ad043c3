"""Softmax attention over the last tokens alone: the control whose cache stops growing."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from echo_ska.nn.attention import RotaryAttention
from echo_ska.nn.mixer import MixerState
from echo_ska.nn.packing import run_by_length


@dataclasses.dataclass
class SlidingState(MixerState):
    """The last W keys and values of N sequences, in a ring: the token at position p stands in slot p mod W.

    Attributes:
        convolution: [N, conv_kernel - 1, 3 H D], the last inputs of the short convolution.
        key, value: [N, W, H, D], keys already rotated; zero where a sequence is still shorter than the ring.
        lengths: tokens read, [N], int64.
    """

    convolution: Tensor
    key: Tensor
    value: Tensor
    lengths: Tensor


class SlidingAttention(RotaryAttention):
    """Multi-head causal attention over a window of W tokens, the current one included, with rotary positions.

    Exact in O(T W): tokens are cut into blocks of at least W, and a block attends to itself and to the W - 1 tokens
    before it. It equals `SoftmaxAttention` up to W tokens.
    Source: Beltagy et al., Longformer, arXiv 2004.05150, section 3.1, causal as in Mistral 7B (arXiv 2310.06825).

    Args:
        hidden_size: d.
        window: W, at least 1 (Hugging Face's `sliding_window`).
        settings: those of `RotaryAttention`.

    Raises:
        ValueError: `window` is below 1, or a size does not fit.
    """

    def __init__(self, hidden_size: int, *, window: int, **settings: Any) -> None:
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        super().__init__(hidden_size, **settings)
        self.window = window

    def forward(
        self,
        hidden_states: Tensor,
        state: SlidingState | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        output_state: bool = False,
    ) -> tuple[Tensor, SlidingState | None]:
        """Mix along time; see `SequenceMixer.forward`."""
        query, key, value, tail, _, _, past, new = self.fresh_tokens(hidden_states, state, cu_seqlens, output_state)
        before = (past, new) if state is None else (past, new, state.key, state.value)
        read = functools.partial(self._read, output_state)
        attended, *rings = run_by_length(read, before, (query, key, value), cu_seqlens)
        mixed = self.o_proj(attended.flatten(-2))
        if tail is None:
            return mixed, None
        key, value = rings
        return mixed, SlidingState(tail, key, value, past + new)

    def _read(self, output_state: bool, past: Tensor, new: Tensor, *vectors: Tensor) -> tuple[Tensor, ...]:
        """What N sequences of T tokens read, [N, T, H, D], and their rings after that, if asked for.

        `past` and `new` [N] count tokens; `vectors` are the rings before [N, W, H, D], if any, and queries, keys and
        values [N, T, H, D].
        """
        *rings, query, key, value = vectors
        if rings:
            key, value = (
                torch.cat([_in_order(ring, past).to(fresh.dtype), fresh], dim=1)
                for ring, fresh in zip(rings, (key, value), strict=True)
            )  # [N, W + T, H, D]
        attended = windowed_attention(query, key, value, self.window, past if rings else None)
        if not output_state:
            return (attended,)
        first = past - self.window if rings else past  # the position that key[:, 0] stands for
        return attended, *(_ring(vectors, first, past + new, self.window) for vectors in (key, value))

    def advance(self, hidden_states: Tensor, state: SlidingState) -> Tensor:
        """Write one token a row over the one that leaves the window, and attend; see `SequenceMixer.advance`."""
        positions = state.lengths[:, None]
        # Softmax knows no order, so the ring is read as it lies; only slots that no token has filled are hidden.
        filled = torch.arange(self.window, device=positions.device) <= positions  # [N, W]
        return self.advance_in(hidden_states, state, positions % self.window, filled)

    def init_state(
        self, batch_size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> SlidingState:
        return SlidingState(**self.empty_cache(batch_size, self.window, device, dtype))

    def state_bytes(self, length: int) -> int:
        """Bytes of one sequence's state: those of the whole ring after any `length`."""
        return self.init_state(1, device="meta").nbytes


def windowed_attention(query: Tensor, key: Tensor, value: Tensor, window: int, past: Tensor | None = None) -> Tensor:
    """Causal softmax attention in which a token sees itself and the window - 1 tokens before it.

    Args:
        query: [N, T, H, D].
        key, value: [N, T, H, D]; with `past` [N, window + T, H, D], where the first `window` are the tokens before.
        past: [N], tokens that each row has before; those of the first `window` places that exceed it are hidden.

    Returns:
        [N, T, H, D].
    """
    length = query.shape[1]
    if length == 0:
        return query
    # Blocks no shorter than the window (so that what a token sees begins in the block before, at the earliest) and of
    # equal length but for the last one's padding, of less than a token a block.
    blocks = max(1, length // window)
    size = -(-length // blocks)
    if past is None and blocks == 1 and length <= window:
        query, key, value = (vectors.transpose(1, 2) for vectors in (query, key, value))
        return F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2)
    reach = window - 1
    lead = window if past is not None else 0
    padding = blocks * size - length
    key, value = (F.pad(vectors, (0, 0, 0, 0, reach - lead, padding)) for vectors in (key, value))
    query = F.pad(query, (0, 0, 0, 0, 0, padding))
    rows, columns = (torch.arange(count, device=query.device) for count in (size, reach + size))
    band = (columns >= rows[:, None]) & (columns <= rows[:, None] + reach)  # [S, W - 1 + S]
    # Only the first block can look at places before the first token.
    seen = columns >= reach if past is None else columns[None] >= (reach - past)[:, None]
    first = band & seen.view(-1, 1, 1, reach + size)  # [1 or N, 1, S, W - 1 + S]
    parts = [_attend(query[:, :size], key[:, : reach + size], value[:, : reach + size], first)]
    if blocks > 1:
        key, value = (vectors[:, size:].unfold(1, reach + size, size).movedim(-1, 2) for vectors in (key, value))
        attended = _attend(query[:, size:].unflatten(1, (blocks - 1, size)), key, value, band)
        parts.append(attended.flatten(1, 2))
    return torch.cat(parts, dim=1)[:, :length]


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """[..., S, H, D] over keys and values [..., L, H, D], with a mask that broadcasts to [..., H, S, L]."""
    shape = query.shape
    query, key, value = (vectors.flatten(0, -4).transpose(1, 2) for vectors in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).reshape(shape)


def _in_order(ring: Tensor, lengths: Tensor) -> Tensor:
    """The ring [N, W, H, D] of rows that have read `lengths` tokens, oldest place first."""
    window = ring.shape[1]
    places = (lengths[:, None] + torch.arange(window, device=ring.device)) % window  # [N, W]
    return ring[torch.arange(len(ring), device=ring.device)[:, None], places]


def _ring(vectors: Tensor, first: Tensor, lengths: Tensor, window: int) -> Tensor:
    """The last `window` of `lengths` [N] tokens in their slots, zero where there are fewer.

    `vectors` [N, L, H, D] holds tokens from the position `first` [N] on.
    """
    slots = torch.arange(window, device=vectors.device)
    last = lengths[:, None] - 1
    positions = last - (last - slots) % window  # [N, W], the newest token of each slot; negative where there is none
    missing = positions < 0
    rows = torch.arange(len(vectors), device=vectors.device)[:, None]
    padded = vectors if vectors.shape[1] else F.pad(vectors, (0, 0, 0, 0, 0, 1))  # a place to point at
    places = (positions - first[:, None]).masked_fill(missing, 0)
    return padded[rows, places].masked_fill(missing[..., None, None], 0)
