"""Padded batches [B, T, d] and the packed rows [1, tokens, d] that the blocks read in their place, or are given."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor


def padding_boundaries(
    attention_mask: Tensor | None, hidden_states: Tensor, cached: int
) -> tuple[Tensor, Tensor] | None:
    """Boundaries [B + 1] and the [B, T] mask of the real tokens, or None where there is no padding."""
    if attention_mask is None:
        return None
    batch, time = hidden_states.shape[:2]
    if attention_mask.dim() != 2 or attention_mask.shape not in ((batch, time), (batch, cached + time)):
        longer = f" or, with the {cached} cached tokens, [{batch}, {cached + time}]" if cached else ""
        raise ValueError(
            f"attention_mask must be [{batch}, {time}]{longer}, got {list(attention_mask.shape)}: 1 marks a token and "
            "0 padding"
        )
    if bool(((attention_mask != 0) & (attention_mask != 1)).any()):
        raise ValueError("attention_mask must hold 1 for tokens and 0 for padding: an additive mask is not read")
    real = attention_mask[:, attention_mask.shape[1] - time :].bool()
    if bool(real.all()):
        return None
    lengths = real.sum(dim=1)
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]), real


def packed_boundaries(
    cu_seqlens: Tensor | None, cu_seq_lens_q: Tensor | None, seq_idx: Tensor | None, hidden_states: Tensor
) -> Tensor | None:
    """The boundaries [N + 1] of packed sequences, or None where none are given.

    Args:
        cu_seqlens: they themselves, and `cu_seq_lens_q` by Hugging Face's name for them.
        seq_idx: [1, T], the number of its sequence for each token: a sequence begins wherever it changes.
        hidden_states: [1, T, d], which they divide.

    Raises:
        ValueError: `seq_idx` has another shape, or what is given twice differs.
    """
    given = {"cu_seqlens": cu_seqlens, "cu_seq_lens_q": cu_seq_lens_q}
    if seq_idx is not None:
        batch, time = hidden_states.shape[:2]
        if batch != 1 or seq_idx.shape != (1, time):
            raise ValueError(
                f"seq_idx must be [1, {time}], the number of its sequence for every token of one packed row, got "
                f"{list(seq_idx.shape)} for {batch} rows of {time}: concatenate the rows along time"
            )
        begins = seq_idx[0].diff().nonzero().flatten() + 1
        given["seq_idx"] = torch.cat([begins.new_zeros(1), begins, begins.new_full((1,), time)])
    found = [(name, boundaries) for name, boundaries in given.items() if boundaries is not None]
    for (name, one), (other, another) in itertools.pairwise(found):
        if one.tolist() != another.tolist():
            raise ValueError(f"{name} and {other} divide the row differently: give one of them")
    return found[0][1] if found else None


def joined(early: Tensor, late: Tensor) -> Tensor:
    """[B, S, d] and [B, T, d] to [B, S + T, d]."""
    return torch.cat([early, late], dim=1)


def scatter(packed: Tensor, real: Tensor, time: int) -> Tensor:
    """[1, tokens, d] back to [B, T, d], zeros at the padding."""
    padded = packed.new_zeros(real.shape[0], time, packed.shape[-1])
    return padded.masked_scatter(real.unsqueeze(-1), packed)
