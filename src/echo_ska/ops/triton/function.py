"""The whole op as one differentiable function of tokens, coefficients and starting moments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from echo_ska.algebra import RidgeFactor
from echo_ska.ops.triton.cuts import Cuts, Segment
from echo_ska.ops.triton.launch import Tokens
from echo_ska.ops.triton.moment_gradient import moment_gradient
from echo_ska.ops.triton.moments import block_moments, scan
from echo_ska.ops.triton.read import solve_points, write_output
from echo_ska.ops.triton.read_gradient import TokenGradients, read_gradient
from echo_ska.ops.triton.token_gradient import token_gradient
from echo_ska.ops.triton.whitening import whiten

# Bytes of moments, float64, that exist at once: the workspace is a small multiple, whatever the length.
SEGMENT_BYTES = 2**28


class ChunkedRead(torch.autograd.Function):
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
        initial: Tensor,
        frozen: Tensor | None,
        ridge: Tensor,
        plain: Tensor | None,
        filtered: Tensor,
        cuts: Cuts,
        power: int,
        reads_all: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Read and sum.

        Args:
            ctx: of autograd.
            query, key, value, root, carried: see `Tokens`.
            initial: the stacked moments that each sequence starts from, float64, [N, H, 2 r + P, r].
            frozen: those that a group begun by an earlier call reads, likewise; None for the exact or non-causal read.
            ridge: float64, [H].
            plain, filtered: coefficients of p_0 and p_K, float32, [T, H]; plain may be None for 0.
            cuts: groups and blocks.
            power: K.
            reads_all: every token reads its whole sequence (then there is one group a sequence).

        Returns:
            The output [T, H, P] in the dtype of value; the moments after each sequence; with `frozen`, those that the
            next token of each sequence would read, else None.
        """
        tokens = Tokens(query, key, value, root, carried)
        output = torch.empty_like(value)
        running = initial.clone()
        refrozen = None if frozen is None else frozen.clone()
        own = frozen is None and not reads_all
        info: list[Tensor] = []  # float64 statistics, then the blocks' own
        own_info: list[Tensor] = []
        resumed: list[Tensor] = []
        for segment in _segments(cuts, tokens):
            if segment.goes_on:
                resumed.append(running[segment.first_sequence].clone())
            rows = _group_moments(tokens, segment, running, frozen, reads_all)
            if refrozen is not None:
                groups, sequences = segment.unfinished()
                refrozen[sequences] = rows[groups]
            basis = whiten(rows, ridge)
            solved = solve_points(tokens, segment, basis, power, own=own)
            write_output(tokens, segment, basis, plain, filtered, solved, output, own=own)
            info.append(basis.info)
            own_info.append(solved.info)
        if refrozen is not None:
            refrozen[cuts.complete] = running[cuts.complete]
        _require_success(info, cuts.sequence, torch.float64)
        if own:
            _require_success(own_info, cuts.sequence, torch.float32)  # a block is a group
        saved = [query, key, value, root, carried, initial, frozen, ridge, plain, filtered]
        ctx.save_for_backward(*saved, *resumed, *([running] if reads_all else []))
        ctx.inputs, ctx.cuts, ctx.power, ctx.reads_all = len(saved), cuts, power, reads_all
        ctx.set_materialize_grads(False)
        return output, running, refrozen

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, output_grad: Tensor | None, final_grad: Tensor | None, refrozen_grad: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        query, key, value, root, carried, initial, frozen, ridge, plain, filtered = saved[: ctx.inputs]
        resumed = list(saved[ctx.inputs :])
        tokens = Tokens(query, key, value, root, carried)
        cuts, power, reads_all = ctx.cuts, ctx.power, ctx.reads_all
        output_grad = torch.zeros_like(value) if output_grad is None else output_grad.contiguous()
        # What later tokens and the final moments ask of the moments so far.
        running_grad = torch.zeros_like(initial) if final_grad is None else final_grad.clone()
        frozen_grad = None if frozen is None else torch.zeros_like(frozen)
        gradients = TokenGradients.like(tokens, plain, filtered)
        ridge_grad = torch.zeros_like(ridge)
        own = frozen is None and not reads_all
        if refrozen_grad is not None and frozen_grad is not None:
            running_grad[cuts.complete] += refrozen_grad[cuts.complete]
            frozen_grad[cuts.lengths == 0] += refrozen_grad[cuts.lengths == 0]

        for segment in reversed(list(_segments(cuts, tokens))):
            if reads_all:
                rows = resumed[-1][segment.sequences]
            else:
                running = initial.clone()
                if segment.goes_on:
                    running[segment.first_sequence] = resumed.pop()
                rows = _group_moments(tokens, segment, running, frozen, reads_all)
            basis = whiten(rows, ridge)
            del rows
            solved = solve_points(tokens, segment, basis, power, own=own)
            read = read_gradient(
                tokens, segment, basis, plain, filtered, power, solved, output_grad, gradients, own=own
            )
            terms = moment_gradient(tokens, segment, basis, plain, filtered, power, solved, read.rights, output_grad)
            trace = terms[:, :, : tokens.rank].diagonal(dim1=-2, dim2=-1)
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
            if reads_all:  # the one group of a sequence reads its own tokens
                terms = running_grad[segment.sequences].float()
            token_gradient(tokens, segment, basis, terms, read, gradients, own=own)
        token_grads = _finish(tokens, cuts, gradients)
        coefficient_grads = (gradients.plain, gradients.filtered)
        return *token_grads, running_grad, frozen_grad, ridge_grad, *coefficient_grads, None, None, None


def _segments(cuts: Cuts, tokens: Tokens) -> Iterator[Segment]:
    return cuts.segments(max(1, SEGMENT_BYTES // (8 * tokens.heads * tokens.moment_rows * tokens.rank)))


def _group_moments(tokens: Tokens, segment: Segment, running: Tensor, frozen: Tensor | None, reads_all: bool) -> Tensor:
    """The moments that each group of the segment reads; `running` [N, ...] moves on to the segment's end."""
    moments = block_moments(tokens, segment)
    scan(moments, running, segment.sequence_edges(of_blocks=True), segment.first_sequence, reverse=False)
    if reads_all:
        return running[segment.sequences]
    if segment.num_groups < segment.num_blocks:
        moments = moments[segment.group_edges()[:-1]]
    if frozen is not None:
        groups, sequences = segment.begun()
        moments[groups] = frozen[sequences]
    return moments


def _require_success(info: list[Tensor], batch_rows: Tensor, dtype: torch.dtype) -> None:
    """Raise if a factorisation failed, as the PyTorch routes do."""
    gathered = torch.cat(info)
    RidgeFactor(lower=torch.empty(0, dtype=dtype), info=gathered).require_success(batch_rows)


def _finish(tokens: Tokens, cuts: Cuts, gradients: TokenGradients) -> tuple[Tensor | None, ...]:
    """The gradients of query, key, value, root and carried from those of the weighted pairs."""
    key_grad, previous_grad, value_grad = gradients.key, gradients.previous_key, gradients.value
    filled = cuts.lengths > 0
    starts = cuts.starts[filled]
    carried_grad = torch.zeros_like(tokens.carried)
    carried_grad[filled] = previous_grad[starts]
    previous_grad[starts] = 0.0
    key_grad[:-1] += previous_grad[1:]  # x_prev of a token is x of the one before it
    root_grad = None
    if tokens.root is not None:
        root_grad = (key_grad * tokens.key).sum(dim=-1) + (value_grad * tokens.value).sum(dim=-1)
        key_grad.mul_(tokens.root.unsqueeze(-1))
        value_grad.mul_(tokens.root.unsqueeze(-1))
    return (
        gradients.query,
        key_grad.to(tokens.key.dtype),
        value_grad.to(tokens.value.dtype),
        root_grad,
        carried_grad,
    )
