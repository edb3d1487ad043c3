"""A recurrence run chunk by chunk, each in products of matrices, keeping one memory a chunk for the backward pass."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor

from echo_ska.ops.derivatives import Gradients, first_derivatives

Chunk = Callable[..., tuple[Tensor, Tensor]]
"""(memory [G, rows, columns], tokens [G, C, any] ...) -> what is read, [G, C, P], and the memory after the chunk.

G counts sequences and heads. A pure function of these tensors: a parameter used inside would get no gradient.
"""


def scan_chunks(function: Chunk, memory: Tensor, tokens: tuple[Tensor, ...], size: int) -> tuple[Tensor, Tensor]:
    """Run `function` over the chunks of all tokens.

    The chunks follow one another and the heads are the batch, so that what is worked on stays in a core's cache. The
    backward pass computes every chunk again, from the inputs and the memory that it started from.

    Args:
        function: what happens in a chunk.
        memory: before the first token, [N, H, rows, columns].
        tokens: [N, T, H, any], at least one token.
        size: tokens of a chunk; the last may have fewer.

    Returns:
        What is read, [N, T, H, P], and the memory after the last token, a tensor of its own.
    """
    read, final = _Scan.apply(function, size, memory.flatten(0, 1), *tokens)
    return read, final.view_as(memory)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Chunk, size: int, memory: Tensor, *tokens: Tensor) -> tuple[Tensor, Tensor]:
        starts, reads, current = [], None, memory
        for begin, end in chunk_bounds(tokens[0].shape[1], size):
            starts.append(current)
            read, current = function(current, *(heads_first(tensor, begin, end) for tensor in tokens))
            if reads is None:
                reads = read.new_empty(*tokens[0].shape[:3], read.shape[-1])
            put_heads_first(reads, begin, end, read)
        assert reads is not None, "there is at least one token"
        ctx.save_for_backward(*starts, *tokens)
        ctx.function, ctx.size, ctx.chunks = function, size, len(starts)
        return reads, current

    @staticmethod
    @functools.partial(
        first_derivatives, refusal="a mixer that scans in chunks has first derivatives only (no create_graph=True)"
    )
    def backward(ctx: Any, saved: Gradients, of_results: Gradients) -> Gradients:
        saved, (of_reads, of_final) = cast(tuple[Tensor, ...], saved), cast(tuple[Tensor, Tensor], of_results)
        starts, tokens = saved[: ctx.chunks], saved[ctx.chunks :]
        gradients = [torch.empty_like(tensor) for tensor in tokens]
        carried = of_final  # gradient of the memory after the chunk
        bounds = list(chunk_bounds(tokens[0].shape[1], ctx.size))
        for (begin, end), start in zip(reversed(bounds), reversed(starts), strict=True):
            leaves = [start.detach(), *(heads_first(tensor, begin, end) for tensor in tokens)]
            with torch.enable_grad():
                leaves = [leaf.requires_grad_() for leaf in leaves]
                results = ctx.function(*leaves)
            carried, *of_chunk = torch.autograd.grad(results, leaves, (heads_first(of_reads, begin, end), carried))
            for whole, piece in zip(gradients, of_chunk, strict=True):
                put_heads_first(whole, begin, end, piece)
        return None, None, carried, *gradients


def chunk_bounds(length: int, size: int) -> Iterator[tuple[int, int]]:
    """Where the chunks of a sequence begin and end; the last may be shorter."""
    for begin in range(0, length, size):
        yield begin, min(begin + size, length)


def heads_first(tokens: Tensor, begin: int, end: int) -> Tensor:
    """[N, T, H, D] -> [N H, C, D], of the tokens from `begin` to `end` - 1, without a gradient."""
    return tokens.detach()[:, begin:end].transpose(1, 2).flatten(0, 1)


def put_heads_first(tokens: Tensor, begin: int, end: int, chunk: Tensor) -> None:
    """[N H, C, D] -> those tokens of [N, T, H, D]."""
    into = tokens[:, begin:end].transpose(1, 2)  # [N, H, C, D]
    into.copy_(chunk.view(into.shape))
