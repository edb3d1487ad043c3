"""Reading a chunk of tokens at once, with a gradient that differentiates no factorisation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from echo_ska.algebra import KoopmanOperator, RidgeFactor


def read_chunks(
    query: Tensor,
    gram: Tensor,
    lag_moment: Tensor,
    value_moment: Tensor,
    *,
    batch_rows: Tensor,
    ridge: Tensor,
    gain: Tensor,
    scale: Tensor,
    power: int,
    blend: Tensor | None = None,
    key: Tensor | None = None,
    previous_key: Tensor | None = None,
    value: Tensor | None = None,
) -> Tensor:
    """Every query of every chunk reads the statistics before its chunk and, if given, the chunk's own tokens s <= t.

    In the basis whitened by the statistics before the chunk, G~ is the identity there and I + X_t^T X_t at token
    t, where X_t holds the chunk's keys up to t. With B B^T = I + X X^T, B lower, and W = B^-1 X, the solve for
    token t is y -> y - sum_{s<=t} (y . w_s) w_s: the leading t x t block of B is the factor that token t needs, so
    all tokens are solved at once, without a loop (docs/method.md section 3).

    Shapes: C chunks of S tokens; the statistics in the accumulator's dtype, the rest in the compute dtype.

    Args:
        query: [C, H, S, r].
        gram, lag_moment: [C, H, r, r].
        value_moment: [C, H, P, r].
        batch_rows: the sequence that each chunk belongs to, [C], for errors to name.
        ridge, gain, scale: [H, 1, 1], in the accumulator's dtype.
        power: K >= 0.
        blend: [C, H, S] or None.
        key, previous_key: the weighted keys of the chunk and those one token earlier, [C, H, S, r], or None to
            read the statistics alone.
        value: weighted values, [C, H, S, P], or None likewise.

    Returns:
        [C, H, S, P] in the compute dtype.

    Raises:
        ArithmeticError: a Gram matrix plus the ridge is not positive definite.
    """
    output: Tensor = _ReadChunks.apply(
        query, gram, lag_moment, value_moment, ridge, gain, scale, power, blend, key, previous_key, value, batch_rows
    )
    return output


class _ReadChunks(torch.autograd.Function):
    """The backward pass holds L fixed: the output does not depend on the basis, so its derivative neither."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        gram: Tensor,
        lag_moment: Tensor,
        value_moment: Tensor,
        ridge: Tensor,
        gain: Tensor,
        scale: Tensor,
        power: int,
        blend: Tensor | None,
        key: Tensor | None,
        previous_key: Tensor | None,
        value: Tensor | None,
        batch_rows: Tensor,
    ) -> Tensor:
        dtype = query.dtype
        factor = RidgeFactor.of(gram, ridge).require_success(batch_rows)
        whitener = factor.inverse_lower  # [C, H, r, r], accumulator dtype
        operator = KoopmanOperator.of(factor, lag_moment).matrix.to(dtype) if power else None
        readout = factor.whiten(value_moment).to(dtype)  # [C, H, P, r]
        to_white = whitener.to(dtype).mT
        chunk = None
        if key is not None and previous_key is not None and value is not None:
            chunk = _Chunk.of(key @ to_white, previous_key @ to_white if power else None, value, batch_rows)
        gain_c, scale_c = gain.to(dtype), scale.to(dtype)

        solved = [_solve(query @ to_white, chunk)]  # h_0, then h_{j+1} = solve(M_t p_j) with p_j = gain h_j
        point = solved[0]
        for _ in range(power):
            solved.append(_solve(_advance(point, operator, chunk), chunk))
            point = gain_c * solved[-1]
        if blend is not None:
            point = torch.lerp(solved[0], point, blend.unsqueeze(-1))
        unscaled = point @ readout.mT
        if chunk is not None:
            unscaled = unscaled + chunk.causal(point @ chunk.key.mT) @ chunk.value
        ctx.power, ctx.has_chunk = power, chunk is not None
        saved = [whitener, operator, readout, gain_c, scale_c, blend, point, unscaled, *solved]
        ctx.save_for_backward(*saved, *(chunk.tensors() if chunk is not None else ()))
        return scale_c * unscaled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, output_grad: Tensor) -> tuple[Tensor | None, ...]:
        power = ctx.power
        whitener, operator, readout, gain, scale, blend, point, unscaled, *rest = ctx.saved_tensors
        solved = rest[: power + 1]
        chunk = _Chunk(*rest[power + 1 :]) if ctx.has_chunk else None
        dtype = output_grad.dtype
        output_grad = output_grad.contiguous()
        scale_grad = _sum_per_head(output_grad * unscaled)
        grad = scale * output_grad  # of the unscaled output
        value_grad = lag_grad = blend_grad = None
        key_grad: Tensor | float = 0.0
        previous_grad: Tensor | float = 0.0
        readout_grad = grad.mT @ point
        point_grad = grad @ readout
        if chunk is not None:
            scores = chunk.causal(grad @ chunk.value.mT)  # [C, H, S, S]
            point_grad = point_grad + scores @ chunk.key
            key_grad = scores.mT @ point
            value_grad = chunk.causal(point @ chunk.key.mT).mT @ grad

        first_grad = torch.zeros_like(point_grad)  # what the blend sends straight to h_0
        if blend is not None:
            filtered = gain * solved[power] if power else solved[0]
            blend_grad = (point_grad * (filtered - solved[0])).sum(dim=-1)
            first_grad = (1 - blend).unsqueeze(-1) * point_grad
            point_grad = blend.unsqueeze(-1) * point_grad
        gain_grad = torch.zeros_like(scale_grad)
        gram_grad = torch.zeros_like(whitener, dtype=dtype)
        if power:
            lag_grad = torch.zeros_like(gram_grad)
        for j in range(power, -1, -1):
            if j == 0:
                solved_grad = point_grad + first_grad
            else:
                gain_grad = gain_grad + _sum_per_head(point_grad * solved[j])
                solved_grad = gain * point_grad
            right_grad = _solve(solved_grad, chunk)  # the solve is its own adjoint
            gram_grad = gram_grad - right_grad.mT @ solved[j]
            if chunk is not None:
                key_grad = key_grad - chunk.causal(solved[j] @ chunk.key.mT).mT @ right_grad
                key_grad = key_grad - chunk.causal(right_grad @ chunk.key.mT).mT @ solved[j]
            if j == 0:
                break
            before = solved[0] if j == 1 else gain * solved[j - 1]
            lag_grad = lag_grad + right_grad.mT @ before
            point_grad = right_grad @ operator
            if chunk is not None and chunk.previous_key is not None:
                scores = chunk.causal(right_grad @ chunk.key.mT)
                point_grad = point_grad + scores @ chunk.previous_key
                key_grad = key_grad + chunk.causal(before @ chunk.previous_key.mT).mT @ right_grad
                previous_grad = previous_grad + scores.mT @ before

        from_white = whitener.to(dtype)
        gram_grad = whitener.mT @ gram_grad.to(whitener.dtype) @ whitener
        ridge_grad = gram_grad.diagonal(dim1=-2, dim2=-1).sum(dim=(0, -1))[:, None, None]
        return (
            right_grad @ from_white,
            gram_grad,
            None if lag_grad is None else whitener.mT @ lag_grad.to(whitener.dtype) @ whitener,
            readout_grad.to(whitener.dtype) @ whitener,
            ridge_grad,
            gain_grad.to(whitener.dtype),
            scale_grad.to(whitener.dtype),
            None,
            blend_grad,
            key_grad @ from_white if isinstance(key_grad, Tensor) else None,
            previous_grad @ from_white if isinstance(previous_grad, Tensor) else None,
            value_grad,
            None,
        )


class _Chunk:
    """The whitened tokens of a chunk and W = B^-1 X."""

    def __init__(self, key: Tensor, value: Tensor, solve_rows: Tensor, mask: Tensor, previous_key: Tensor | None):
        self.key, self.value, self.solve_rows, self.mask, self.previous_key = key, value, solve_rows, mask, previous_key

    @classmethod
    def of(cls, key: Tensor, previous_key: Tensor | None, value: Tensor, batch_rows: Tensor) -> _Chunk:
        size = key.shape[-2]
        mask = torch.ones(size, size, device=key.device, dtype=key.dtype).tril()
        solve_rows = RidgeFactor.of(key @ key.mT, 1.0).require_success(batch_rows).inverse_lower @ key
        return cls(key, value, solve_rows, mask, previous_key)

    def tensors(self) -> tuple[Tensor | None, ...]:
        return self.key, self.value, self.solve_rows, self.mask, self.previous_key

    def causal(self, scores: Tensor) -> Tensor:
        """Scores [C, H, S, S] of the pairs s <= t alone. A product: faster than torch.tril."""
        return scores * self.mask


def _solve(rows: Tensor, chunk: _Chunk | None) -> Tensor:
    """G~_t^-1 applied to row t, for all rows at once."""
    if chunk is None:
        return rows
    return rows - chunk.causal(rows @ chunk.solve_rows.mT) @ chunk.solve_rows


def _advance(rows: Tensor, operator: Tensor | None, chunk: _Chunk | None) -> Tensor:
    """M_t applied to row t, for all rows at once."""
    assert operator is not None
    advanced = rows @ operator.mT
    if chunk is None or chunk.previous_key is None:
        return advanced
    return advanced + chunk.causal(rows @ chunk.previous_key.mT) @ chunk.key


def _sum_per_head(terms: Tensor) -> Tensor:
    """[C, H, S, D] -> [H, 1, 1]."""
    return terms.sum(dim=(0, 2, 3))[:, None, None]
