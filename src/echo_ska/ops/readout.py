"""A context that is read and no longer written folds into one matrix a head: y = R q."""

from __future__ import annotations

import torch
from torch import Tensor

from echo_ska.algebra import RidgeFactor, SufficientStatistics
from echo_ska.ops.arguments import require_power
from echo_ska.ops.state import RecurrentState


def folded_readout(
    context: RecurrentState | SufficientStatistics,
    *,
    ridge: Tensor | float,
    power: int,
    gain: Tensor | float = 1.0,
    scale: Tensor | float = 1.0,
    blend: Tensor | float | None = None,
) -> Tensor:
    """The whole read of a frozen context as one matrix R a head; every later query costs r P products.

    With J = (G + ridge I)^-1,

        R = scale * C f,    f = (gain J M)^power J    or    (1 - blend) J + blend (gain J M)^power J.

    Args:
        context: what was read; of a `RecurrentState` the statistics that its next token reads before it writes (the
            frozen ones under a refresh interval).
        ridge: > 0, scalar or [H].
        power: K >= 0.
        gain, scale: scalar or [H].
        blend: one for all tokens, scalar or [H] in [0, 1], or None for the pure power filter. For a blend that
            depends on the token take `folded_readouts`.

    Returns:
        R, [N, H, P, r], in the statistics' dtype: `y = R @ q` for a query q of [N, H, r, ...].

    Raises:
        ValueError: the ridge is not positive, or the power no integer >= 0.
        ArithmeticError: a Gram matrix plus the ridge is not positive definite; names batch row and head.
    """
    plain, filtered = folded_readouts(context, ridge=ridge, power=power, gain=gain, scale=scale)
    if blend is None:
        return filtered
    return torch.lerp(plain, filtered, per_head(blend, plain).expand_as(plain))


def folded_readouts(
    context: RecurrentState | SufficientStatistics,
    *,
    ridge: Tensor | float,
    power: int,
    gain: Tensor | float = 1.0,
    scale: Tensor | float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The plain and the filtered readout, [N, H, P, r] each: y = (1 - blend) plain q + blend filtered q.

    Arguments and errors are those of `folded_readout`; this is what a blend that differs from token to token needs.
    """
    if isinstance(context, RecurrentState):
        context = context.statistics if context.frozen_statistics is None else context.frozen_statistics
    inverse = inverse_of(context.gram, ridge)
    readouts = fold(inverse, context.lag_moment, context.value_moment, power)
    scale = per_head(scale, inverse)
    plain, filtered = readouts.unbind(dim=2)
    return scale * plain, scale * per_head(gain, inverse) ** power * filtered


def fold(inverse: Tensor, lag_moment: Tensor, value_moment: Tensor, power: int) -> Tensor:
    """C J and C (J M)^power J, stacked: [N, H, 2, P, r], without gain and scale."""
    require_power(power)
    plain = value_moment @ inverse
    filtered = plain
    for _ in range(power):
        filtered = filtered @ lag_moment @ inverse
    return torch.stack([plain, filtered], dim=2)


def inverse_of(gram: Tensor, ridge: Tensor | float, batch_rows: Tensor | None = None) -> Tensor:
    """(G + ridge I)^-1, [N, H, r, r], by a Cholesky factorisation.

    Raises:
        ValueError: the ridge is not positive.
        ArithmeticError: as `RidgeFactor.require_success` does.
    """
    ridge = per_head(ridge, gram)
    if not bool((ridge > 0).all()):
        raise ValueError(f"ridge must be > 0, got {float(ridge.min()):.6g}")
    factor = RidgeFactor.of(gram, ridge).require_success(batch_rows)
    identity = torch.eye(gram.shape[-1], device=gram.device, dtype=gram.dtype)
    return factor.solve(identity)


def per_head(number: Tensor | float, like: Tensor) -> Tensor:
    """A scalar or [H] tensor in the shape [H, 1, 1] (or [1, 1, 1]), dtype and device of `like`."""
    return torch.as_tensor(number, dtype=like.dtype, device=like.device).reshape(-1, 1, 1)
