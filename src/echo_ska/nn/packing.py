"""From sequences packed one after the other to rows padded to equal length, and back."""

from __future__ import annotations

import torch
from torch import Tensor


def sequence_lengths(hidden_states: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """Tokens of each sequence, [N] int64, of a dense [B, T, ...] or packed [1, T, ...] batch."""
    if cu_seqlens is not None:
        return cu_seqlens.diff().to(hidden_states.device, torch.int64)
    return torch.full((hidden_states.shape[0],), hidden_states.shape[1], device=hidden_states.device)


def pad_packed(packed: Tensor, cu_seqlens: Tensor) -> Tensor:
    """[1, T, ...] -> [N, longest, ...], zeros behind each sequence."""
    rows, columns, lengths = _places(cu_seqlens, packed.device)
    padded = packed.new_zeros(len(lengths), int(lengths.max()), *packed.shape[2:])
    return padded.index_put((rows, columns), packed[0])


def unpad(padded: Tensor, cu_seqlens: Tensor) -> Tensor:
    """[N, longest, ...] -> [1, T, ...]; the inverse of `pad_packed`."""
    rows, columns, _ = _places(cu_seqlens, padded.device)
    return padded[rows, columns].unsqueeze(0)


def _places(cu_seqlens: Tensor, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Row and column of every packed token, [T] each, and the lengths [N]."""
    bounds = cu_seqlens.to(device, torch.int64)
    lengths = bounds.diff()
    rows = torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths)
    return rows, torch.arange(int(bounds[-1]), device=device) - bounds[rows], lengths
