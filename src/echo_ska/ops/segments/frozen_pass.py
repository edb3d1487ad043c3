"""Chunk-causal reads whose chunks hold many tokens, and non-causal reads, segment by segment.

Tokens read statistics that stand still, so every chunk (or the whole sequence) is whitened by what it reads, and what
the tokens write needs no basis but the raw one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from echo_ska.algebra import RidgeFactor
from echo_ska.ops.segments.carry import BackwardCarry, Forward, ForwardCarry, InputGradients
from echo_ska.ops.segments.frozen_read import FrozenRead, write_gradients
from echo_ska.ops.segments.plan import Block, SegmentPlan
from echo_ska.ops.segments.tokens import Tokens, exact_tokens, load_output_grad, load_tokens
from echo_ska.ops.segments.values import Anchor, Call, Keep, Statistics, Workspace
from echo_ska.ops.segments.window import Window, windows


def frozen_forward(call: Call, plan: SegmentPlan, keep: Keep) -> Forward:
    """Outputs, final statistics, and what `frozen_backward` needs, if it is to be kept: an anchor a chunk
    (non-causal: a sequence), and the key before each segment.

    Raises:
        ArithmeticError: a Gram matrix plus the ridge is not positive definite.
    """
    carry = ForwardCarry(call, plan)
    heads, rank, _ = call.sizes
    anchors = plan.chunks if call.causal else len(plan.order)
    saved_keys = carry.work.kept(True, plan.anchors * heads * rank)
    saved_anchors = carry.work.kept(keep is not Keep.NOTHING, anchors * heads * Anchor.size(call))
    views = _Views(call, plan, saved_keys, saved_anchors, carry.work)
    for block in plan.blocks:
        if call.causal:
            _forward_by_chunk(carry, views, block)
        else:
            _forward_at_once(carry, views, block)
    return carry.result(saved_keys, saved_anchors, call.ridge.new_empty(0))


def frozen_backward(
    call: Call, plan: SegmentPlan, forward: Forward, output_grad: Tensor, final_grads: Sequence[Tensor | None]
) -> InputGradients:
    """Gradients of all inputs of `call`; arguments as of `exact_backward`."""
    carry = BackwardCarry(call, plan, final_grads)
    views = _Views(call, plan, forward.saved_tokens, forward.saved_anchors, carry.work)
    for block in plan.blocks:
        if call.causal:
            _backward_by_chunk(carry, views, block, output_grad)
        else:
            _backward_at_once(carry, views, block, output_grad)
    return carry.result()


def _forward_by_chunk(carry: ForwardCarry, views: _Views, block: Block) -> None:
    """Each chunk reads the statistics before it, a lead the frozen ones."""
    call, work = carry.call, carry.work
    for window, key in views.keys(block):
        key.copy_(carry.previous_key(window))
        tokens = load_tokens(call, window, key, work)
        sums = _before_chunks(carry.read(window), tokens, window.chunks, carry.has_lag, work)
        factor = RidgeFactor.of(sums.gram, call.ridge[:, None, None, None])
        carry.check([factor], window.members)
        anchor = views.anchors(window.rows * window.chunks)
        anchor.fill(sums, factor)
        carry.store(window, FrozenRead(tokens, anchor, call.power, work).output())
        carry.advance(window, tokens)


def _backward_by_chunk(carry: BackwardCarry, views: _Views, block: Block, output_grad: Tensor) -> None:
    call, work = carry.call, carry.work
    cut = [(window, key, views.anchors(window.rows * window.chunks)) for window, key in views.keys(block)]
    for window, key, anchor in reversed(cut):
        tokens = load_tokens(call, window, key, work)
        found = FrozenRead(tokens, anchor, call.power, work).backward(load_output_grad(output_grad, window, work))
        carry.tokens.store_reads(window, found.query, found.plain, found.filtered)
        own = found.own.in_basis(anchor.whitener).unflatten((window.rows, call.sizes[0], window.chunks))
        after = _after_chunks(carry.after(window).to(call.dtype), own)
        carry.store_writes(window, tokens, *write_gradients(tokens, after, carry.has_lag, work))
        if window.is_lead:
            carry.send_to_frozen(window, own.summed_chunks())
        else:
            carry.after(window).add_(own.summed_chunks())


def _forward_at_once(carry: ForwardCarry, views: _Views, block: Block) -> None:
    """All tokens read what all tokens have written."""
    call, work = carry.call, carry.work
    cut = views.keys(block)
    for window, key in cut:
        key.copy_(carry.previous_key(window))
        carry.advance(window, load_tokens(call, window, key, work))
    sums = carry.running.rows(block.members)
    factor = RidgeFactor.of(sums.gram, call.ridge[:, None, None])
    carry.check([factor], block.members)
    anchor = views.anchors(block.rows)
    anchor.fill(sums, factor)
    for window, key in cut:
        tokens = load_tokens(call, window, key, work)
        carry.store(window, FrozenRead(tokens, anchor.first(window.rows * call.sizes[0]), call.power, work).output())


def _backward_at_once(carry: BackwardCarry, views: _Views, block: Block, output_grad: Tensor) -> None:
    call, work = carry.call, carry.work
    cut = views.keys(block)
    anchor = views.anchors(block.rows)
    later = carry.later.rows(block.members)
    sent = Statistics(*(torch.zeros_like(tensor) for tensor in later.tensors()))
    for window, key in cut:
        tokens = load_tokens(call, window, key, work)
        reading = FrozenRead(tokens, anchor.first(window.rows * call.sizes[0]), call.power, work)
        found = reading.backward(load_output_grad(output_grad, window, work))
        carry.tokens.store_reads(window, found.query, found.plain, found.filtered)
        sent.rows(slice(window.rows)).add_(found.own.unflatten((window.rows, call.sizes[0])))
    sent = sent.in_basis(anchor.whitener.to(call.ridge.dtype).unflatten(0, (block.rows, call.sizes[0])))
    later.add_(sent)
    for window, key in reversed(cut):
        tokens = load_tokens(call, window, key, work)
        after = carry.after(window).to(call.dtype).unflatten((window.rows, call.sizes[0], 1))
        carry.store_writes(window, tokens, *write_gradients(tokens, after, carry.has_lag, work))


def _before_chunks(first: Statistics, tokens: Tokens, chunks: int, has_lag: bool, work: Workspace) -> Statistics:
    """The statistics before each chunk of a segment, [rows, H, n, ...]; `first` are those before its first chunk."""
    dtype = first.gram.dtype
    before = Statistics(
        *(
            work(f"before_{i}", *tensor.shape[:2], chunks, *tensor.shape[2:], dtype=dtype)
            for i, tensor in enumerate(first.tensors())
        )
    )
    for running, start in zip(before.tensors(), first.tensors(), strict=True):
        running[:, :, 0] = start
    if chunks > 1:
        key, value = exact_tokens(tokens, dtype, work)
        batch = key.shape[0] * chunks
        own = key[:, 1:].reshape(batch, -1, key.shape[-1])
        terms = [own.mT @ own, None, value.reshape(batch, -1, value.shape[-1]).mT @ own]
        if has_lag:
            terms[1] = own.mT @ key[:, :-1].reshape(own.shape)
        for running, term in zip(before.tensors(), terms, strict=True):
            if term is not None:
                for c in range(1, chunks):
                    torch.add(running[:, :, c - 1], term.view_as(running)[:, :, c - 1], out=running[:, :, c])
    return before


def _after_chunks(later: Statistics, own: Statistics) -> Statistics:
    """The gradient of all that comes after each chunk, [rows, H, n, ...]."""
    after = Statistics(*(torch.empty_like(tensor) for tensor in own.tensors()))
    for running, end, terms in zip(after.tensors(), later.tensors(), own.tensors(), strict=True):
        running[:, :, -1] = end
        for c in range(running.shape[2] - 1, 0, -1):
            torch.add(running[:, :, c], terms[:, :, c], out=running[:, :, c - 1])
    return after


class _Views:
    """Cuts what a pass saves, in order; anchors that are not kept lie in buffers."""

    def __init__(self, call: Call, plan: SegmentPlan, keys: Tensor, anchors: Tensor, work: Workspace) -> None:
        self.call, self.plan, self.work = call, plan, work
        self._keys, self._anchors, self._keeps_anchors = keys, anchors, anchors.numel() > 0

    def keys(self, block: Block) -> list[tuple[Window, Tensor]]:
        """The windows of the next block, each with the key before it, [rows, H, r]."""
        heads, rank, _ = self.call.sizes
        found = []
        for window in windows(self.plan, block, self._keys.device):
            size = window.rows * heads * rank
            taken, self._keys = self._keys.split([size, self._keys.numel() - size])
            found.append((window, taken.view(window.rows, heads, rank)))
        return found

    def anchors(self, count: int) -> Anchor:
        """The next `count` anchors of all heads."""
        size = count * self.call.sizes[0] * Anchor.size(self.call)
        if not self._keeps_anchors:
            return Anchor.view(self.work("anchor", size), self.call)
        taken, self._anchors = self._anchors.split([size, self._anchors.numel() - size])
        return Anchor.view(taken, self.call)
