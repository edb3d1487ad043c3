"""The one equation: how a query reads the statistics of a context."""

from __future__ import annotations

from torch import Tensor

from echo_ska.algebra.koopman import KoopmanOperator
from echo_ska.algebra.ridge import RidgeFactor
from echo_ska.algebra.statistics import SufficientStatistics


def read(
    statistics: SufficientStatistics,
    query: Tensor,
    *,
    ridge: Tensor,
    power: int,
    gain: Tensor | float = 1.0,
    scale: Tensor | float = 1.0,
    blend: Tensor | None = None,
    batch_rows: Tensor | None = None,
) -> Tensor:
    """y = scale * C L^-T f(A) L^-1 q for every query of every head.

    Args:
        statistics: of the context, [B, H, ...].
        query: [B, H, m, r], in the statistics' dtype.
        ridge: > 0, [H, 1, 1] or a scalar tensor.
        power: K >= 0.
        gain: factor of the operator, scalar or [H, 1, 1].
        scale: factor of the output, scalar or [H, 1, 1].
        blend: [B, H, m] in [0, 1], or None for the pure power filter.
        batch_rows: [B], what an error calls each row where that is not its place.

    Returns:
        [B, H, m, P].

    Raises:
        ArithmeticError: the Gram matrix plus the ridge is not positive definite in this dtype.

    Source: Sridhar & Johansen, arXiv 2605.06997; docs/method.md section 1.
    """
    factor = RidgeFactor.of(statistics.gram, ridge).require_success(batch_rows)
    whitened = factor.whiten(query)
    if power > 0:
        operator = KoopmanOperator.of(factor, statistics.lag_moment)
        whitened = operator.filter(whitened, power, gain, blend)
    return scale * (whitened @ factor.whiten(statistics.value_moment).mT)
