"""The exact causal read of a call, segment by segment; also of refresh intervals shorter than a chunk."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from echo_ska.algebra import RidgeFactor
from echo_ska.ops.segments.carry import BackwardCarry, Forward, ForwardCarry, InputGradients
from echo_ska.ops.segments.exact_read import read_segment, segment_gradients
from echo_ska.ops.segments.exact_segment import ExactSegment, Kept
from echo_ska.ops.segments.plan import SegmentPlan
from echo_ska.ops.segments.tokens import load_output_grad, load_tokens
from echo_ska.ops.segments.values import Anchor, Call, Keep, Statistics, Workspace
from echo_ska.ops.segments.window import Window, windows


def exact_sizes(call: Call, keep: Keep) -> tuple[int, int]:
    """How many numbers a pass that keeps them keeps for a head: of each slot, and of each row of a segment."""
    _, rank, _ = call.sizes
    squares = 2 if keep is Keep.TOKENS else 1  # the step and, beside W, J
    return (call.power + 2) * rank, Anchor.size(call) + (squares * rank + 1) * rank


def exact_forward(call: Call, plan: SegmentPlan, keep: Keep) -> Forward:
    """Outputs, final statistics, and what `exact_backward` needs, if it is to be kept: what stands at each segment's
    start, and W and the solved vectors of every token.

    Raises:
        ArithmeticError: a Gram matrix plus the ridge is not positive definite.
    """
    carry = ForwardCarry(call, plan)
    per_slot, per_row = exact_sizes(call, keep)
    heads = call.sizes[0]
    saved_tokens = carry.work.kept(keep is Keep.TOKENS, plan.slots * heads * per_slot)
    saved_anchors = carry.work.kept(keep is not Keep.NOTHING, plan.anchors * heads * per_row)
    views = _Views(call, saved_tokens, saved_anchors, carry.work)
    lower = torch.empty_like(carry.running.gram)
    for block in plan.blocks:
        for window in windows(plan, block, call.value.device):
            saved = views.take(window)
            sums, basis = carry.read(window), lower[window.members]
            factor = RidgeFactor.of(sums.gram, call.ridge[:, None, None])
            saved.anchor.fill(sums, factor)
            saved.step.copy_(factor.inverse_lower if window.is_first else factor.inverse_lower @ basis)
            basis.copy_(factor.lower)
            saved.previous_key.copy_(carry.previous_key(window))

            tokens = load_tokens(call, window, carry.previous_key(window), carry.work)
            segment = ExactSegment(tokens, saved.kept(), _mask(call, window), call.power, call.power > 0, carry.work)
            output, factors = read_segment(segment)
            carry.check([factor, *factors], window.members)
            carry.store(window, output)
            carry.advance(window, tokens)
    return carry.result(saved_tokens, saved_anchors, lower)


def exact_backward(
    call: Call, plan: SegmentPlan, forward: Forward, output_grad: Tensor, final_grads: Sequence[Tensor | None]
) -> InputGradients:
    """Gradients of all inputs of `call`; segments run in reverse and carry what later ones send to their start.

    Args:
        forward: what `exact_forward` returned.
        output_grad: [B, T, H, P].
        final_grads: of the final gram, lag and value moment, or None where they have none.
    """
    carry = BackwardCarry(call, plan, final_grads)
    if any(grad is not None for grad in final_grads):
        carry.later = carry.later.in_basis(forward.lower)
    carry.later = carry.later.to(call.dtype)
    views = _Views(call, forward.saved_tokens, forward.saved_anchors, carry.work)
    for block in plan.blocks:
        cut = windows(plan, block, call.value.device)
        for window, saved in reversed([(window, views.take(window)) for window in cut]):
            tokens = load_tokens(call, window, saved.previous_key, carry.work)
            segment = ExactSegment(tokens, saved.kept(), _mask(call, window), call.power, carry.has_lag, carry.work)
            if not views.keeps_tokens:
                read_segment(segment)
            later = carry.after(window)
            sent = Statistics.of_gradients((None, None, None), later) if window.is_lead else later
            grad = load_output_grad(output_grad, window, carry.work)
            found = segment_gradients(segment, grad, later, sent)
            carry.tokens.store_reads(window, found.query, found.plain, found.filtered)
            carry.store_writes(window, tokens, found.key, found.previous_key, found.value)
            if window.is_lead:
                carry.send_to_frozen(window, sent.in_basis(saved.step))
            later.copy_(later.in_basis(saved.step))
    return carry.result()


def _mask(call: Call, window: Window) -> Tensor:
    """[S, S]: which tokens of its chunk a token reads; all up to itself, or those before its interval."""
    slots = torch.arange(window.chunk_size, device=call.value.device)
    seen = slots // call.interval * call.interval if call.interval else slots + 1
    return (slots < seen[:, None]).to(call.dtype)


class _Saved:
    """What the backward pass needs of one segment beside its tokens; R is rows times heads.

    Attributes:
        anchor: the statistics at its start; where tokens are kept, the forward pass takes it on to the last chunk.
        step: L_i^-1 L_{i-1}, from the basis of the anchor before (at first the raw one), [rows, H, r, r].
        previous_key: the weighted key before it, [rows, H, r].
    """

    def __init__(self, views: _Views, window: Window) -> None:
        heads, rank, _ = views.call.sizes
        rows, power = window.rows * heads, views.call.power
        self.views = views
        self.anchor = Anchor.view(views.anchors("anchor", rows * Anchor.size(views.call)), views.call)
        self.step = views.anchors("step", rows * rank * rank).view(window.rows, heads, rank, rank)
        self.previous_key = views.anchors("previous", rows * rank).view(window.rows, heads, rank)
        # Kept with the tokens alone: without them the backward pass computes it again, and leaves what is kept alone.
        inverse = views.anchors if views.keeps_tokens else views.work
        self.inverse = inverse("kept_inverse", rows * rank * rank).view(rows, rank, rank)
        groups = 1 if window.at_once else window.chunks
        chunks = (groups, rows * window.chunks // groups)
        self.solve_rows = views.tokens("solve_rows", *chunks, window.chunk_size, rank)
        self.points = views.tokens("points", *chunks, power + 1, window.chunk_size, rank)

    def kept(self) -> Kept:
        """For the segment to fill or to use; what is saved stays as it is if tokens are not kept."""
        anchor = self.anchor if self.views.keeps_tokens else self.anchor.copy(self.views.work)
        return Kept(anchor, self.inverse, self.solve_rows, self.points)


class _Views:
    """Cuts what a pass saves, segment by segment; what is not kept lies in buffers."""

    def __init__(self, call: Call, tokens: Tensor, anchors: Tensor, work: Workspace) -> None:
        self.call, self.work = call, work
        self._tokens, self._anchors = tokens, anchors
        self.keeps_tokens, self.keeps_anchors = tokens.numel() > 0, anchors.numel() > 0

    def take(self, window: Window) -> _Saved:
        """Views for the next segment."""
        return _Saved(self, window)

    def anchors(self, name: str, size: int) -> Tensor:
        if not self.keeps_anchors:
            return self.work(name, size)
        taken, self._anchors = self._anchors.split([size, self._anchors.numel() - size])
        return taken

    def tokens(self, name: str, *shape: int) -> Tensor:
        if not self.keeps_tokens:
            return self.work(name, *shape)
        size = torch.Size(shape).numel()
        taken, self._tokens = self._tokens.split([size, self._tokens.numel() - size])
        return taken.view(shape)
