"""The memory from chunk to chunk: S_{k+1} = S_k M_k + X_k, whichever peer it is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def carry(writes: Tensor, transitions: Tensor | None, memory: Tensor) -> tuple[Tensor, Tensor]:
    """The memory before every chunk and after the last one.

    Args:
        writes: X, what each chunk adds, [K, G, P, r]; G counts sequences and heads.
        transitions: M, what each chunk does to the memory it finds: [K, G, r, r]; or [K, G, 1, r], the diagonal of a
            diagonal M, or [K, G, 1, 1] where that is one number; None for M = 1.
        memory: S before the first chunk, [G, P, r].

    Returns:
        [K, G, P, r] and [G, P, r], a tensor of its own.
    """
    if transitions is None:
        sums = torch.cat([memory.unsqueeze(0), writes]).cumsum(0)
        return sums[:-1], sums[-1].clone()
    starts, final = _Carry.apply(writes, transitions, memory)
    return starts, final


class _Carry(torch.autograd.Function):
    """The adjoint is the same recurrence from the other end.

    Left to autograd, the loop would keep several nodes of the graph and several fresh tensors a chunk.
    """

    @staticmethod
    def forward(ctx: Any, writes: Tensor, transitions: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        starts, final = _recurrence(writes, transitions, memory, range(len(writes)))
        ctx.save_for_backward(transitions, starts)
        return starts, final

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        transitions, starts = ctx.saved_tensors
        of_starts, of_final = gradients
        dense = _is_dense(transitions)
        of_writes, of_memory = _recurrence(
            of_starts, transitions.mT if dense else transitions, of_final, range(len(starts) - 1, -1, -1)
        )
        if dense:
            of_transitions = starts.mT @ of_writes
        else:
            of_transitions = (of_writes * starts).sum_to_size(transitions.shape)
        return of_writes, of_transitions, of_memory


def _is_dense(transitions: Tensor) -> bool:
    return transitions.shape[-2] > 1


def _recurrence(added: Tensor, transitions: Tensor, memory: Tensor, order: range) -> tuple[Tensor, Tensor]:
    """The memories before each chunk, in the given order of chunks, and the one after the last."""
    before = torch.empty_like(added, memory_format=torch.contiguous_format)
    dense = _is_dense(transitions)
    for chunk in order:
        before[chunk] = memory
        if dense:
            memory = torch.baddbmm(added[chunk], memory, transitions[chunk])
        else:
            memory = torch.addcmul(added[chunk], memory, transitions[chunk])
    return before, memory
