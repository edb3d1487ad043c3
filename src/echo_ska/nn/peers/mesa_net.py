"""MesaNet: the same ridge regression as SKA's, by conjugate gradients, with a memory that forgets."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echo_ska.nn.initialization import inverse_softplus
from echo_ska.nn.peers.base import LinearMixer
from echo_ska.nn.peers.chunks import scan_chunks
from echo_ska.nn.peers.decay import HeadDecay
from echo_ska.ops.derivatives import Gradients, first_derivatives

RIDGE_LOWER_BOUND = 0.25
CG_STEPS = 30


class DiagonalRidge(nn.Module):
    """A learnt ridge per head and channel, 0.25 + softplus(.).

    Args:
        num_heads, rank: H and r.
        initial: where it starts.

    Raises:
        ValueError: it would start at its lower bound or below.
    """

    _no_weight_decay = ("raw_ridge",)

    def __init__(self, num_heads: int, rank: int, initial: float = 1.0) -> None:
        super().__init__()
        if not initial > RIDGE_LOWER_BOUND:
            raise ValueError(f"initial_ridge must be above its lower bound {RIDGE_LOWER_BOUND}, got {initial}")
        self.initial = initial
        self.raw_ridge = nn.Parameter(torch.empty(num_heads, rank))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start at `initial`."""
        nn.init.constant_(self.raw_ridge, inverse_softplus(self.initial - RIDGE_LOWER_BOUND))

    def forward(self, dtype: torch.dtype) -> Tensor:
        """The ridge, [H, r], in `dtype`."""
        return F.softplus(self.raw_ridge.to(dtype)) + RIDGE_LOWER_BOUND


class MesaNet(LinearMixer):
    """The layer of von Oswald et al. (arXiv 2506.05233): values regressed on keys, optimally at every token.

        G_t = g_t G_{t-1} + b_t k_t k_t^T      C_t = g_t C_{t-1} + b_t v_t k_t^T      y_t = C_t (G_t + Lambda)^-1 q_t

    The inverse is never formed: `cg_steps` steps of conjugate gradients solve for all tokens at once, and each of them
    needs products with G_t alone, which are those of linear attention with keys for values. The gradient is that of the
    exact solution, by one more solve (G_t + Lambda is its own adjoint). `step` takes as many steps on the G it carries.

    Args:
        cg_steps: steps of conjugate gradients at most; they end where all residuals are at the rounding error.
        initial_ridge: where the diagonal of Lambda starts; it is learnt per head and channel, above 0.25.
        decay: forget by g_t, per head (`HeadDecay`); False never forgets, as SKA.
        Others: see `LinearMixer`. The memory holds C and, below it, G.

    Raises:
        ValueError: the ridge would start at its lower bound or below, or there is no step to take.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        cg_steps: int = CG_STEPS,
        initial_ridge: float = 1.0,
        decay: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__(hidden_size, **settings)
        if cg_steps < 1:
            raise ValueError(f"cg_steps must be at least 1, got {cg_steps}")
        self.cg_steps = cg_steps
        self.decay = HeadDecay(hidden_size, self.num_heads) if decay else None
        self.ridge = DiagonalRidge(self.num_heads, self.rank, initial_ridge)

    @property
    def memory_shape(self) -> tuple[int, int, int]:
        return self.num_heads, self.head_dim + self.rank, self.rank

    def tokens(
        self, hidden_states: Tensor, query: Tensor, key: Tensor, value: Tensor, weight: Tensor | None
    ) -> tuple[Tensor, ...]:
        written = torch.cat([value, key], dim=-1)
        ridge = self.ridge(query.dtype).expand_as(query)
        found = query, key if weight is None else key * weight, written, ridge
        return found if self.decay is None else (*found, self.decay(hidden_states))

    def recur(self, memory: Tensor, *tokens: Tensor) -> Tensor:
        query, key, written, ridge = tokens[:4]
        if len(tokens) == 5:
            memory.mul_(tokens[4].exp().unsqueeze(-1))
        memory.addcmul_(written.unsqueeze(-1), key.unsqueeze(-2))
        moment, gram = memory.to(query.dtype).split([self.head_dim, self.rank], dim=-2)
        solved = conjugate_gradients(
            lambda x: (gram @ x.unsqueeze(-1)).squeeze(-1) + ridge * x, query, steps=self.cg_steps
        )
        return (moment @ solved.unsqueeze(-1)).squeeze(-1)

    def scan(self, memory: Tensor, *tokens: Tensor) -> tuple[Tensor, Tensor]:
        return scan_chunks(functools.partial(mesa_chunk, self.cg_steps), memory, tokens, self.chunk_size)


def mesa_chunk(
    steps: int,
    memory: Tensor,
    query: Tensor,
    key: Tensor,
    written: Tensor,
    ridge: Tensor,
    log_decay: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """All tokens of a chunk at once; see `chunks.Chunk`.

    Args:
        steps: of conjugate gradients, at most.
        memory: C over G, [G, P + r, r].
        query, key: [G, C, r], keys times their write weight.
        written: values beside keys (without the weight), [G, C, P + r].
        ridge: [G, C, r].
        log_decay: [G, C, 1].
    """
    if log_decay is None:
        log_decay = torch.zeros_like(query[..., :1])
    sizes = [written.shape[-1] - query.shape[-1], query.shape[-1]]
    # Only differences inside a chunk are used, so the precision does not depend on how far the sequence has run.
    decay = log_decay.cumsum(-2)  # [G, C, 1]
    future = torch.full((decay.shape[1],) * 2, -torch.inf, dtype=decay.dtype, device=decay.device).triu(1)
    between = (decay + future).sub_(decay.mT).exp_()  # [G, C, C], exponents <= 0
    since, until_end = torch.exp(decay), torch.exp(decay[:, -1:] - decay)
    moment, gram = memory.split(sizes, dim=-2)
    values, keys = written.split(sizes, dim=-1)
    solved = _Solve.apply(steps, query, ridge, since, gram, between, key, keys)
    read = since * (solved @ moment.mT) + (solved @ key.mT * between) @ values
    return read, torch.baddbmm(memory * since[:, -1:], (written * until_end).mT, key)


def conjugate_gradients(
    product: Callable[[Tensor], Tensor], right: Tensor, *, steps: int, tolerance: float | None = None
) -> Tensor:
    """x with product(x) = right, for a symmetric positive definite map of each vector [..., r] on its own.

    Args:
        product: the map, [..., r] -> [..., r].
        right: [..., r].
        steps: how many are taken at most.
        tolerance: end where every residual's norm is below this times its right-hand side's; None takes all steps,
            which a compiler can unroll.

    Returns:
        x, [..., r], started from 0.
    """
    least = torch.finfo(right.dtype).tiny  # 0 / 0 where the residual is 0, as in a token of zeros
    solution, residual, direction = torch.zeros_like(right), right, right
    size = residual.square().sum(-1, keepdim=True)
    goal = None if tolerance is None else size * tolerance**2
    for _ in range(steps):
        if goal is not None and bool((size <= goal).all()):
            break
        image = product(direction)
        length = size / (direction * image).sum(-1, keepdim=True).clamp_min(least)
        solution = torch.addcmul(solution, length, direction)
        residual = torch.addcmul(residual, length, image, value=-1)
        before, size = size, residual.square().sum(-1, keepdim=True)
        direction = torch.addcmul(residual, size / before.clamp_min(least), direction)
    return solution


def _gram_product(
    vectors: Tensor, ridge: Tensor, since: Tensor, gram: Tensor, between: Tensor, weighted: Tensor, keys: Tensor
) -> Tensor:
    """(G_t + Lambda) x_t of every token of a chunk [G, C, r], without forming G_t."""
    own = torch.addcmul(ridge * vectors, since, vectors @ gram)
    return torch.baddbmm(own, vectors @ weighted.mT * between, keys)


class _Solve(torch.autograd.Function):
    """x_t = (G_t + Lambda)^-1 q_t, with the gradient of the exact solution: dx = (G + Lambda)^-1 (dq - dG x)."""

    @staticmethod
    def forward(ctx: Any, steps: int, query: Tensor, *system: Tensor) -> Tensor:
        ctx.steps = steps
        solution = _solved(query, system, steps)
        ctx.save_for_backward(solution, *system)
        return solution

    @staticmethod
    @functools.partial(first_derivatives, refusal="MesaNet has first derivatives only (no create_graph=True)")
    def backward(ctx: Any, saved: Gradients, gradients: Gradients) -> Gradients:
        solution, *system = cast(tuple[Tensor, ...], saved)
        adjoint = _solved(cast(Tensor, gradients[0]), system, ctx.steps)
        with torch.enable_grad():
            leaves = [tensor.detach().requires_grad_() for tensor in system]
            image = _gram_product(solution, *leaves)
        return None, adjoint, *torch.autograd.grad(image, leaves, -adjoint)


def _solved(right: Tensor, system: Any, steps: int) -> Tensor:
    tolerance = torch.finfo(right.dtype).eps
    return conjugate_gradients(lambda x: _gram_product(x, *system), right, steps=steps, tolerance=tolerance)
