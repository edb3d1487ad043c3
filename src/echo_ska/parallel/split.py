"""Cutting a batch of sequences into the parts that processes hold."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def part_bounds(length: int, world: int, multiple_of: int = 1) -> list[int]:
    """Where the parts begin, and `length`: `world` + 1 numbers; parts are as equal as `multiple_of` allows.

    Raises:
        ValueError: a part would have no token.
    """
    bounds = [length * part // world // multiple_of * multiple_of for part in range(world)] + [length]
    if any(begin >= end for begin, end in itertools.pairwise(bounds)):
        grain = f" in multiples of {multiple_of}" if multiple_of > 1 else ""
        raise ValueError(
            f"{length} tokens cannot be cut into {world} parts{grain}: use longer sequences or fewer ranks"
        )
    return bounds


def packed_bounds(cu_seqlens: Sequence[int], world: int, multiple_of: int, least: int = 1) -> list[int]:
    """As `part_bounds`, of packed sequences: a part begins at a multiple of `multiple_of` tokens of the sequence it
    begins in, or where a sequence begins.

    Each cut of equal parts is moved down to such a place; up, or further down, where a part would be too short.

    Args:
        cu_seqlens: the sequences' boundaries, from 0 to the length.
        world, multiple_of: see `part_bounds`.
        least: tokens that every part has.

    Raises:
        ValueError: no cuts at such places leave every part so many tokens.
    """
    starts, length = sorted(set(cu_seqlens)), max(cu_seqlens)
    places = [place for begin, end in itertools.pairwise(starts) for place in range(begin, end, multiple_of)]

    def below(place: int) -> int:
        found = bisect.bisect_right(places, place) - 1
        return places[found] if found >= 0 else -1

    latest = [length]  # where each part may begin at the latest, from the last to the first
    for _ in range(world):
        latest.insert(0, below(latest[0] - least))
    if latest[0] < 0:
        raise ValueError(
            f"{length} tokens of packed sequences cannot be cut into {world} parts of at least {least} tokens, each "
            f"from a multiple of {multiple_of} in its sequence: use longer rows or fewer ranks"
        )
    bounds = [0]
    for part in range(1, world):
        cut, earliest = below(length * part // world), bounds[-1] + least
        if cut < earliest:
            cut = places[bisect.bisect_left(places, earliest)]
        bounds.append(min(cut, latest[part]))
    return [*bounds, length]


def split_sequence(
    batch: dict[str, Tensor],
    rank: int,
    world: int,
    *,
    multiple_of: int = 1,
    least: int = 1,
    bounds: list[int] | None = None,
) -> dict[str, Tensor]:
    """The part of a batch that the process `rank` of `world` holds.

    Args:
        batch: `input_ids` [B, T]; if given, `labels` [B, T] as models take them (labels[t] is the token AT t, -100 is
            not scored), `cu_seqlens` [N + 1] of packed sequences (B = 1), and an `attention_mask` of ones.
        rank, world: which part, of how many.
        multiple_of: parts begin at multiples of this, counted from the start of the sequence they begin in, which a
            `refresh_interval` asks for; parts of packed sequences are as unequal then as that takes (`packed_bounds`).
        least: tokens that every part of such packed sequences has.
        bounds: where the parts begin, and T, instead of equal parts.

    Returns:
        `input_ids` [B, part]; `shift_labels` [B, part], each the label of the NEXT token, so that a part's last token
        is scored on the first one of the part after it; `cu_seqlens` of the part, whose sequence 0 is the one that the
        part before ended in, without a token if another begins here.

    Raises:
        ValueError: a part without a token, or of too few, padding, or a key that cannot be cut.
    """
    unknown = sorted(set(batch) - {"input_ids", "labels", "cu_seqlens", "attention_mask"})
    if unknown:
        raise ValueError(f"a batch of parts is made of input_ids, labels and cu_seqlens, not of {', '.join(unknown)}")
    if (mask := batch.get("attention_mask")) is not None and not bool((mask == 1).all()):
        raise ValueError("a padded batch cannot be cut: pack its sequences into one row and give cu_seqlens")
    length = batch["input_ids"].shape[1]
    if bounds is None and multiple_of > 1 and "cu_seqlens" in batch:
        bounds = packed_bounds(batch["cu_seqlens"].tolist(), world, multiple_of, least)
    elif bounds is None:
        bounds = part_bounds(length, world, multiple_of)
    if len(bounds) != world + 1 or bounds[0] != 0 or bounds[-1] != length or sorted(set(bounds)) != bounds:
        raise ValueError(f"bounds must be {world + 1} increasing numbers from 0 to {length}, got {bounds}")
    begin, end = bounds[rank], bounds[rank + 1]
    part = {"input_ids": batch["input_ids"][:, begin:end]}
    if "labels" in batch:
        part["shift_labels"] = F.pad(batch["labels"], (0, 1), value=-100)[:, begin + 1 : end + 1]
    if "cu_seqlens" in batch:
        part["cu_seqlens"] = _part_of_packing(batch["cu_seqlens"], begin, end)
    return part


def _part_of_packing(cu_seqlens: Tensor, begin: int, end: int) -> Tensor:
    """Boundaries of the sequences of a part; the first is the one that token `begin` - 1 belongs to."""
    inside = [bound - begin for bound in sorted(set(cu_seqlens.tolist())) if begin <= bound < end]
    if begin == 0:
        inside = inside[1:]  # nothing comes before the first sequence
    return torch.tensor([0, *inside, end - begin], dtype=cu_seqlens.dtype, device=cu_seqlens.device)
