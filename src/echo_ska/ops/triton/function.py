"""The whole op as one differentiable function of tokens, coefficients and starting moments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from echo_ska.algebra import RidgeFactor
from echo_ska.ops.derivatives import first_derivatives
from echo_ska.ops.triton.call import Call, TokenGradients
from echo_ska.ops.triton.cuts import Cuts, Segment
from echo_ska.ops.triton.moment_gradient import moment_gradient
from echo_ska.ops.triton.moments import block_moments, scan
from echo_ska.ops.triton.output import output_gradient, write_output
from echo_ska.ops.triton.points import solve_points
from echo_ska.ops.triton.points_gradient import points_gradient
from echo_ska.ops.triton.token_gradient import token_gradient
from echo_ska.ops.triton.whitening import whiten

# Bytes of float64 moments that exist at once; the workspace is a few times that, whatever the length.
SEGMENT_BYTES = 2**28


class KoopmanRead(torch.autograd.Function):
    """Forward and backward go over segments of groups; the backward pass computes each segment's moments again.

    Between the passes only inputs are kept, and the moments before each segment that begins inside a sequence.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        root: Tensor | None,
        carried: Tensor,
        plain: Tensor | None,
        filtered: Tensor,
        ridge: Tensor,
        initial: Tensor,
        frozen: Tensor | None,
        cuts: Cuts,
        power: int,
        reads_all: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Read and sum.

        Args:
            ctx: of autograd.
            query, key, value, root, carried, plain, filtered, power: see `Call`.
            ridge: float64, [H].
            initial: the stacked moments that each sequence starts from, float64, [N, H, 2 r + P, r].
            frozen: those that a group begun by an earlier call reads, likewise; None for the exact or non-causal read.
            cuts: groups and blocks; in the exact read a group is one block, in the non-causal one a whole sequence.
            reads_all: the non-causal read.

        Returns:
            The output [T, H, P] in the dtype of value; the moments after each sequence; with `frozen`, those that the
            next token of each sequence reads, else None.
        """
        own = frozen is None and not reads_all
        call = Call(query, key, value, root, carried, plain, filtered, power, own)
        output = torch.empty_like(value)
        running = initial.clone()
        refrozen = None if frozen is None else frozen.clone()
        statistics_info: list[Tensor] = []
        block_info: list[Tensor] = []
        resumed: list[Tensor] = []
        for segment in _segments(cuts, call):
            if segment.goes_on:
                resumed.append(running[segment.first_sequence].clone())
            moments = _group_moments(call, segment, running, frozen, reads_all)
            if refrozen is not None:
                groups, sequences = segment.unfinished()
                refrozen[sequences] = moments[groups]
            basis = whiten(moments, ridge)
            solved = solve_points(call, segment, basis)
            write_output(call, segment, basis, solved, output)
            statistics_info.append(basis.info)
            block_info.append(solved.info)
        if refrozen is not None:
            refrozen[cuts.complete] = running[cuts.complete]
        _require_success(statistics_info, cuts, torch.float64)
        if own:
            _require_success(block_info, cuts, torch.float32)
        inputs = [query, key, value, root, carried, plain, filtered, ridge, initial, frozen]
        ctx.save_for_backward(*inputs, *([running] if reads_all else resumed))
        ctx.num_inputs, ctx.cuts, ctx.power, ctx.reads_all, ctx.own = len(inputs), cuts, power, reads_all, own
        ctx.set_materialize_grads(False)
        return output, running, refrozen

    @staticmethod
    @first_derivatives
    def backward(ctx: Any, saved: tuple[Any, ...], grads: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        output_grad, final_grad, refrozen_grad = grads
        inputs, kept = saved[: ctx.num_inputs], list(saved[ctx.num_inputs :])
        query, key, value, root, carried, plain, filtered, ridge, initial, frozen = inputs
        call, cuts = Call(query, key, value, root, carried, plain, filtered, ctx.power, ctx.own), ctx.cuts
        output_grad = torch.zeros_like(call.value) if output_grad is None else output_grad.contiguous()
        gradients = TokenGradients.like(call)
        ridge_grad = torch.zeros_like(ridge)
        # What later tokens and the final moments ask of the moments so far, and what begun groups ask of `frozen`.
        running_grad = torch.zeros_like(initial) if final_grad is None else final_grad.clone()
        frozen_grad = None if frozen is None else torch.zeros_like(frozen)
        if refrozen_grad is not None and frozen_grad is not None:
            running_grad[cuts.complete] += refrozen_grad[cuts.complete]
            frozen_grad[cuts.lengths == 0] += refrozen_grad[cuts.lengths == 0]

        for segment in reversed(list(_segments(cuts, call))):
            if ctx.reads_all:
                moments = kept[0][segment.sequences]
            else:
                running = initial.clone()
                if segment.goes_on:
                    running[segment.first_sequence] = kept.pop()
                moments = _group_moments(call, segment, running, frozen, ctx.reads_all)
            basis = whiten(moments, ridge)
            del moments
            solved = solve_points(call, segment, basis)
            point_grad, white_key_grad = output_gradient(call, segment, basis, solved, output_grad, gradients)
            read = points_gradient(call, segment, basis, solved, point_grad, white_key_grad, gradients.query)
            terms = moment_gradient(call, segment, basis, solved, read.rights, output_grad)
            trace = terms[:, :, : call.rank].diagonal(dim1=-2, dim2=-1)
            ridge_grad += trace.sum(dim=(0, 2), dtype=torch.float64)
            if refrozen_grad is not None:
                groups, sequences = segment.unfinished()
                terms[groups] += refrozen_grad[sequences].float()
            if frozen_grad is not None:
                groups, sequences = segment.begun()
                frozen_grad[sequences] += terms[groups]
                terms[groups] = 0.0
            edges = segment.sequence_edges(of_blocks=False)
            scan(terms, running_grad, edges, segment.first_sequence, reverse=True)
            if ctx.reads_all:  # the one group of a sequence reads its own tokens
                terms = running_grad[segment.sequences].float()
            token_gradient(call, segment, basis, terms, read, gradients)
        tokens_grad = _token_gradients(call, cuts, gradients)
        return (
            *tokens_grad,
            gradients.plain,
            gradients.filtered,
            ridge_grad,
            running_grad,
            frozen_grad,
            None,
            None,
            None,
        )


def _segments(cuts: Cuts, call: Call) -> Iterator[Segment]:
    return cuts.segments(max(1, SEGMENT_BYTES // (8 * call.heads * call.moment_rows * call.rank)))


def _group_moments(call: Call, segment: Segment, running: Tensor, frozen: Tensor | None, reads_all: bool) -> Tensor:
    """The moments that each group of the segment reads; `running` [N, ...] moves on to the segment's end."""
    moments = block_moments(call, segment)
    scan(moments, running, segment.sequence_edges(of_blocks=True), segment.first_sequence, reverse=False)
    if reads_all:
        return running[segment.sequences]
    if segment.num_groups < segment.num_blocks:
        moments = moments[segment.group_edges()[:-1]]
    if frozen is not None:
        groups, sequences = segment.begun()
        moments[groups] = frozen[sequences]
    return moments


def _require_success(info: list[Tensor], cuts: Cuts, dtype: torch.dtype) -> None:
    """Raise if a factorisation failed, as the PyTorch routes do."""
    RidgeFactor(lower=torch.empty(0, dtype=dtype, device="cpu"), info=torch.cat(info)).require_success(cuts.sequence)


def _token_gradients(call: Call, cuts: Cuts, gradients: TokenGradients) -> tuple[Tensor | None, ...]:
    """The gradients of query, key, value, root and carried from those of the weighted pairs."""
    key_grad, previous_grad, value_grad = gradients.key, gradients.previous_key, gradients.value
    filled = cuts.lengths > 0
    starts = cuts.starts[filled]
    carried_grad = torch.zeros_like(call.carried)
    carried_grad[filled] = previous_grad[starts]
    previous_grad[starts] = 0.0
    key_grad[:-1] += previous_grad[1:]  # x_prev of a token is x of the one before it
    root_grad = None
    if call.root is not None:
        root_grad = (key_grad * call.key).sum(dim=-1) + (value_grad * call.value).sum(dim=-1)
        key_grad.mul_(call.root.unsqueeze(-1))
        value_grad.mul_(call.root.unsqueeze(-1))
    return gradients.query, key_grad.to(call.key.dtype), value_grad.to(call.value.dtype), root_grad, carried_grad
