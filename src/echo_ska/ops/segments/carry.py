"""What a pass carries from segment to segment."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from echo_ska.algebra import RidgeFactor
from echo_ska.ops.segments.plan import SegmentPlan
from echo_ska.ops.segments.tokens import TokenGradients, Tokens, add_tokens, last_keys
from echo_ska.ops.segments.values import Call, Statistics, Workspace
from echo_ska.ops.segments.window import Window


@dataclasses.dataclass
class Forward:
    """What a forward pass returns.

    Attributes:
        output: [B, T, H, P] in the compute dtype.
        final: the statistics at the end of each sequence, [N, H, ...]; not meant to be read unless the call asks.
        saved_tokens, saved_anchors: flat numbers for the backward pass, of tokens and of segments; empty if not kept.
        lower: L of each row's last anchor, [rows, H, r, r]; empty where the backward pass needs none.
    """

    output: Tensor
    final: Statistics
    saved_tokens: Tensor
    saved_anchors: Tensor
    lower: Tensor


class ForwardCarry:
    """The statistics so far and the last key of each row of a plan; the output."""

    def __init__(self, call: Call, plan: SegmentPlan) -> None:
        self.call, self.plan = call, plan
        self.work = Workspace(call.filtered.new_empty(0, dtype=call.dtype))
        self.order = torch.tensor(plan.order, device=call.ridge.device)
        self.running = call.initial.select(self.order)
        self._frozen = None if call.frozen is None else call.frozen.select(self.order)
        self._previous_key = call.previous_key[self.order].to(call.dtype)
        self.output = torch.empty(call.value.shape, device=call.value.device, dtype=call.dtype)
        self.has_lag = call.power > 0 or call.final_state

    def sums(self, window: Window) -> Statistics:
        """A view of the running sums of a segment's rows, [rows, H, ...]."""
        return self.running.rows(window.members)

    def read(self, window: Window) -> Statistics:
        """The statistics that the first chunk of a segment reads."""
        return self._frozen.rows(window.members) if window.is_lead and self._frozen is not None else self.sums(window)

    def previous_key(self, window: Window) -> Tensor:
        """A view of the weighted key before a segment, [rows, H, r]."""
        return self._previous_key[window.members]

    def advance(self, window: Window, tokens: Tokens) -> None:
        """Go on to the end of a segment, if anything needs it."""
        if self.call.final_state or not (window.is_last and self.call.causal):
            add_tokens(self.sums(window), tokens, self.has_lag, self.work)
            self.previous_key(window).copy_(last_keys(tokens, window))

    def check(self, factors: Sequence[RidgeFactor], members: slice) -> None:
        """Raise if one of the factors, each of some rows and all heads, has failed.

        Raises:
            ArithmeticError: names the sequence and head.
        """
        infos = torch.cat([factor.info.flatten() for factor in factors])
        if bool(infos.any()):
            sequences = self.order[members]
            for factor in factors:
                info = factor.info.reshape(len(sequences), self.call.sizes[0], -1).amax(dim=-1)
                RidgeFactor(factor.lower, info).require_success(sequences)

    def store(self, window: Window, output: Tensor) -> None:
        """Put the outputs of a segment, [R, slots, P], in their place."""
        window.store(output.unflatten(0, (window.rows, -1)), self.output)

    def result(self, saved_tokens: Tensor, saved_anchors: Tensor, lower: Tensor) -> Forward:
        return Forward(
            self.output, self.call.initial.replaced(self.order, self.running), saved_tokens, saved_anchors, lower
        )


@dataclasses.dataclass
class InputGradients:
    """What a backward pass returns: gradients of the tensors in `Call`."""

    tokens: TokenGradients
    ridge: Tensor
    initial: Statistics
    previous_key: Tensor
    frozen: Statistics | None


class BackwardCarry:
    """What the segments after the present one send to the statistics and to the last key; all gradients.

    Args:
        call, plan: of the forward pass.
        final_grads: of the final gram, lag and value moment; None where they have none.
    """

    def __init__(self, call: Call, plan: SegmentPlan, final_grads: Sequence[Tensor | None]) -> None:
        self.call = call
        self.work = Workspace(call.filtered.new_empty(0, dtype=call.dtype))
        self.order = torch.tensor(plan.order, device=call.ridge.device)
        self.has_lag = call.power > 0 or final_grads[1] is not None
        self._final = Statistics.of_gradients(final_grads, call.initial)
        self.later = self._final.select(self.order)
        self.frozen = None if call.frozen is None else Statistics.of_gradients((None, None, None), call.frozen)
        shape = call.previous_key.shape
        self._previous_key = call.previous_key.new_zeros(len(plan.order), *shape[1:], dtype=call.dtype)
        self.tokens = TokenGradients(call)

    def after(self, window: Window) -> Statistics:
        """A view of what is sent to the statistics at a segment's end, [rows, H, ...]."""
        return self.later.rows(window.members)

    def store_writes(self, window: Window, tokens: Tokens, key: Tensor, previous_key: Tensor, value: Tensor) -> None:
        """Store the gradients of the weighted keys [R, slots, r], the one before, and values, changed in place."""
        self.tokens.store_writes(window, tokens, key, previous_key, value, self._previous_key[window.members])

    def send_to_frozen(self, window: Window, own: Statistics) -> None:
        """What a lead's reads send to the statistics that it read."""
        assert self.frozen is not None
        self.frozen.set_rows(self.order[window.members], own)

    def result(self) -> InputGradients:
        """`later` must stand in the raw basis by now."""
        previous_key = torch.zeros_like(self.call.previous_key)
        previous_key.index_copy_(0, self.order, self._previous_key.to(previous_key.dtype))
        initial = self._final.replaced(self.order, self.later)
        # The ridge is part of every G~ that was read: the trace of all that reads have sent to a Gram matrix.
        sent = initial.gram - self._final.gram
        initial.gram -= _antisymmetric(sent)
        if self.frozen is not None:
            sent = sent + self.frozen.gram
            self.frozen.gram -= _antisymmetric(self.frozen.gram)
        ridge = sent.diagonal(dim1=-2, dim2=-1).sum(dim=(0, 2))
        return InputGradients(self.tokens, ridge, initial, previous_key, self.frozen)


def _antisymmetric(matrices: Tensor) -> Tensor:
    """What reads must not send to a Gram matrix: it is symmetric, and so is the gradient of a factorisation."""
    return (matrices - matrices.mT) / 2
