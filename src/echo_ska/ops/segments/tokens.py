"""The tokens of one segment: taken from the call, added to the running sums, and their gradients put back."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from echo_ska.ops.segments.values import Call, Statistics, Workspace
from echo_ska.ops.segments.window import Window


@dataclasses.dataclass
class Tokens:
    """One segment's tokens, weighted, in the raw basis; R is rows times heads.

    Attributes:
        query: [R, slots, r].
        key: the key before the segment and the segment's own, [R, 1 + slots, r]; zero in empty slots.
        value: [R, slots, P]; zero in empty slots.
        plain, filtered: [R, slots, 1].
        weight, root: the write weight and its square root, [R, slots, 1], or None for 1.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    plain: Tensor | None
    filtered: Tensor
    weight: Tensor | None
    root: Tensor | None


def load_tokens(call: Call, window: Window, previous_key: Tensor, work: Workspace) -> Tokens:
    """One segment's tokens, in buffers; `previous_key` is the weighted key before it, [rows, H, r]."""
    heads, rank, _ = call.sizes
    rows, slots = window.rows, window.slots

    def load(name: str, tokens: Tensor) -> Tensor:
        if tokens.dim() == 3:
            tokens = tokens.unsqueeze(-1)
        return window.load(tokens, work(name, rows, heads, slots, tokens.shape[3]))

    joined = work("raw_key", rows, heads, 1 + slots, rank)
    joined[:, :, 0] = previous_key
    key = window.load(call.key, joined[:, :, 1:])
    value = load("raw_value", call.value)
    weight = root = None
    if call.write_weight is None:
        window.clear_empty(key)
        window.clear_empty(value)
    else:
        weight = window.clear_empty(load("weight", call.write_weight))
        root = torch.sqrt(weight, out=work("root", rows, heads, slots, 1))
        key.mul_(root)
        value.mul_(root)
    return Tokens(
        query=load("query", call.query).flatten(0, 1),
        key=joined.flatten(0, 1),
        value=value.flatten(0, 1),
        plain=None if call.plain is None else load("plain", call.plain).flatten(0, 1),
        filtered=load("filtered", call.filtered).flatten(0, 1),
        weight=None if weight is None else weight.flatten(0, 1),
        root=None if root is None else root.flatten(0, 1),
    )


def load_output_grad(output_grad: Tensor, window: Window, work: Workspace) -> Tensor:
    """One segment's gradient of the output, [R, slots, P], zero in empty slots."""
    slots = work("output_grad", window.rows, output_grad.shape[2], window.slots, output_grad.shape[3])
    return window.clear_empty(window.load(output_grad, slots)).flatten(0, 1)


def add_tokens(sums: Statistics, tokens: Tokens, has_lag: bool, work: Workspace) -> None:
    """Add a segment's tokens to the running sums of its rows, in place: one product each in the sums' dtype.

    Why whole segments: sums of float32 products would round once a chunk, and errors add up over a long sequence.
    """
    key, value = exact_tokens(tokens, sums.gram.dtype, work)
    own = key[:, 1:]
    sums.gram.flatten(0, 1).baddbmm_(own.mT, own)
    if has_lag:
        sums.lag_moment.flatten(0, 1).baddbmm_(own.mT, key[:, :-1])
    sums.value_moment.flatten(0, 1).baddbmm_(value.mT, own)


def exact_tokens(tokens: Tokens, dtype: torch.dtype, work: Workspace) -> tuple[Tensor, Tensor]:
    """Keys (with the one before) and values in the accumulator's dtype."""
    if tokens.key.dtype == dtype:
        return tokens.key, tokens.value
    key = work("exact_key", *tokens.key.shape, dtype=dtype).copy_(tokens.key)
    return key, work("exact_value", *tokens.value.shape, dtype=dtype).copy_(tokens.value)


def last_keys(tokens: Tokens, window: Window) -> Tensor:
    """The weighted key of each row's last token, [rows, H, r], of rows that go on after the segment."""
    key = tokens.key.unflatten(0, (window.rows, -1))
    return key[:, :, -1] if window.last_slot is None else key[window.all_rows, :, window.last_slot + 1]


class TokenGradients:
    """Gradients of a call's tokens, filled segment by segment."""

    def __init__(self, call: Call) -> None:
        def like(tensor: Tensor) -> Tensor:
            return torch.empty(tensor.shape, device=tensor.device, dtype=tensor.dtype)

        self.query, self.key, self.value, self.filtered = map(like, (call.query, call.key, call.value, call.filtered))
        self.write_weight = None if call.write_weight is None else like(call.write_weight)
        self.plain = None if call.plain is None else like(call.plain)

    def store_reads(self, window: Window, query: Tensor, plain: Tensor | None, filtered: Tensor) -> None:
        """Gradients [R, slots, ...] of what is read with."""
        _store(window, query, self.query)
        _store(window, filtered, self.filtered)
        if plain is not None and self.plain is not None:
            _store(window, plain, self.plain)

    def store_writes(
        self, window: Window, tokens: Tokens, key: Tensor, previous_key: Tensor, value: Tensor, carried: Tensor
    ) -> None:
        """Gradients of the weighted keys [R, slots, r] and values [R, slots, P], changed in place.

        Args:
            previous_key: what this segment sends to the key before it, [R, 1, r].
            carried: what the next segment sends to the last key, [rows, H, r]; replaced by `previous_key`.
        """
        by_row = key.unflatten(0, (window.rows, -1))
        if window.last_slot is None:
            by_row[:, :, -1] += carried
        else:
            by_row[window.all_rows, :, window.last_slot] += carried
        carried.copy_(previous_key.view(carried.shape))
        if self.write_weight is not None and tokens.weight is not None and tokens.root is not None:
            # x = sqrt(b) k, so db = (dx . k + du . v) / (2 sqrt(b)) = (dx . x + du . u) / (2 b); 0 at b = 0.
            products = (key * tokens.key[:, 1:]).sum(-1, keepdim=True)
            products += (value * tokens.value).sum(-1, keepdim=True)
            _store(window, torch.where(tokens.weight > 0, products / (2 * tokens.weight), 0.0), self.write_weight)
            key, value = key.mul_(tokens.root), value.mul_(tokens.root)
        _store(window, key, self.key)
        _store(window, value, self.value)


def _store(window: Window, slots: Tensor, target: Tensor) -> None:
    by_row = slots.reshape(window.rows, -1, window.slots, slots.shape[-1])
    window.store(by_row if target.dim() == 4 else by_row.squeeze(-1), target)
