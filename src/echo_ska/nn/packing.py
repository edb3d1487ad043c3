"""Packed sequences, run in padded groups of about equal lengths: padding never costs more than the tokens do."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def sequence_lengths(hidden_states: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """Tokens of each sequence, [N] int64, of a dense [B, T, ...] or packed [1, T, ...] batch."""
    if cu_seqlens is not None:
        return cu_seqlens.diff().to(hidden_states.device, torch.int64)
    return torch.full((hidden_states.shape[0],), hidden_states.shape[1], device=hidden_states.device)


def token_places(hidden_states: Tensor, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor]:
    """The sequence of every token and its place in that, int64, [B, T] each, of such a batch."""
    rows, length = hidden_states.shape[:2]
    places = torch.arange(length, device=hidden_states.device).expand(rows, length)
    if cu_seqlens is None:
        return torch.arange(rows, device=places.device)[:, None].expand(rows, length), places
    bounds = cu_seqlens.to(places.device, torch.int64)
    sequences = torch.arange(len(bounds) - 1, device=places.device)
    sequences = sequences.repeat_interleave(bounds.diff(), output_size=length).unsqueeze(0)
    return sequences, places - bounds[sequences]


def run_by_length(
    function: Callable[..., tuple[Tensor, ...]],
    rows: Sequence[Tensor],
    tokens: Sequence[Tensor],
    cu_seqlens: Tensor | None,
    reach: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """`function` of all sequences: of a dense batch at once, of a packed one in groups of sequences of like length.

    A group is a batch whose sequences are filled up with zeros to its longest. It holds less than twice the tokens
    that are not padding, so that one long sequence among many short ones costs no more than it does alone.

    Args:
        function: takes n of the N sequences, `rows` [n, ...] and then `tokens` [n, t, ...]; returns something for every
            token, [n, t, ...], and any number of tensors [n, ...]. What it returns for padding is left out.
        rows: what belongs to a sequence, [N, ...] each, on any device.
        tokens: [B, T, ...] each, or [1, T, ...] with `cu_seqlens`.
        cu_seqlens: [N + 1] boundaries of a packed batch.
        reach: [N], a second size of each sequence on which the cost depends; in a group it is alike as well.

    Returns:
        As `function`: [B, T, ...] or [1, T, ...], and [N, ...] each.
    """
    if cu_seqlens is None:
        return function(*rows, *tokens)
    return _run_groups(function, rows, tokens, cu_seqlens, reach)


@torch.compiler.disable  # the groups' number and shapes change with every batch, and so would the program
def _run_groups(
    function: Callable[..., tuple[Tensor, ...]],
    rows: Sequence[Tensor],
    tokens: Sequence[Tensor],
    cu_seqlens: Tensor,
    reach: Tensor | None,
) -> tuple[Tensor, ...]:
    lengths: list[int] = cu_seqlens.diff().tolist()
    groups = _Groups(lengths, like_lengths(lengths, lengths if reach is None else reach.tolist()), tokens[0].device)
    parts = zip(*map(groups.rows, rows), *map(groups.padded, tokens), strict=True)
    of_tokens, *of_rows = zip(*(function(*part) for part in parts), strict=True)
    return groups.packed(of_tokens), *map(groups.in_order, of_rows)


def like_lengths(*sizes: Sequence[int]) -> list[list[int]]:
    """Numbers of the sequences in groups: in none of these is a size twice another or more, and 0 is with 0 alone.

    Args:
        sizes: of each sequence, for every kind of size that counts.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for sequence, own in enumerate(zip(*sizes, strict=True)):
        groups.setdefault(tuple(size.bit_length() for size in own), []).append(sequence)
    return list(groups.values())


class _Groups:
    """Padded groups one after the other: where each sequence and each token of a packed batch stands in them.

    Args:
        lengths: tokens of each sequence.
        groups: the sequences of each group.
        device: of the tokens.
    """

    def __init__(self, lengths: list[int], groups: list[list[int]], device: torch.device) -> None:
        self.shapes = [(len(group), max(lengths[sequence] for sequence in group)) for group in groups]
        order, begins = [], {}
        end = 0
        for group, (_, longest) in zip(groups, self.shapes, strict=True):
            for sequence in group:
                order.append(sequence)
                begins[sequence], end = end, end + longest
        shifts = [begins[n] - begin for n, begin in enumerate(itertools.accumulate(lengths[:-1], initial=0))]
        # None: all stand in the groups where they stand in the packed batch, and nothing has to be copied.
        self.order = None if order == sorted(order) else torch.tensor(order)
        self.places = None
        if any(shifts) or end > sum(lengths):
            shift, counts = _on(device, torch.tensor([shifts, lengths]))
            places = torch.arange(sum(lengths), device=device)
            self.places = places + shift.repeat_interleave(counts, output_size=len(places))

    def rows(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """[N, ...] -> [n, ...] of each group."""
        return _taken(tensor, self.order).split([count for count, _ in self.shapes])

    def in_order(self, parts: Sequence[Tensor]) -> Tensor:
        """[n, ...] of each group -> [N, ...]."""
        return _taken(_joined(parts), None if self.order is None else self.order.argsort())

    def padded(self, packed: Tensor) -> list[Tensor]:
        """[1, T, ...] -> [n, t, ...] of each group, with zeros behind each sequence."""
        sizes = [count * longest for count, longest in self.shapes]
        flat = packed[0]
        if self.places is not None:
            flat = flat.new_zeros(sum(sizes), *flat.shape[1:]).index_copy_(0, self.places, flat)
        return [part.unflatten(0, shape) for part, shape in zip(flat.split(sizes), self.shapes, strict=True)]

    def packed(self, parts: Sequence[Tensor]) -> Tensor:
        """[n, t, ...] of each group -> [1, T, ...]."""
        return _taken(_joined([part.flatten(0, 1) for part in parts]), self.places).unsqueeze(0)


def _taken(tensor: Tensor, places: Tensor | None) -> Tensor:
    return tensor if places is None else tensor.index_select(0, _on(tensor.device, places))


def _on(device: torch.device, tensor: Tensor) -> Tensor:
    """The tensor on `device`, without waiting for what a GPU still has to do before."""
    return tensor.to(device, non_blocking=device.type == "cuda")


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
