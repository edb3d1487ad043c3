"""The Koopman operator of the keys in the whitened basis, and the spectral filter built on its powers."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from echo_ska.algebra.ridge import RidgeFactor


@dataclasses.dataclass(frozen=True)
class KoopmanOperator:
    """A = L^-1 M L^-T: the regularised linear map from one key to the next, seen in the whitened basis.

    Its norm is below 1 whatever the keys (Cauchy-Schwarz, because the same weight enters both slots of every
    statistic; docs/method.md), so it is applied without any normalisation.

    Attributes:
        matrix: A, [..., r, r].
    """

    matrix: Tensor

    @classmethod
    def of(cls, factor: RidgeFactor, lag_moment: Tensor) -> KoopmanOperator:
        """The operator of the statistics whose factored Gram matrix is `factor`."""
        return cls(factor.inverse_lower @ lag_moment @ factor.inverse_lower.mT)

    def filter(self, rows: Tensor, power: int, gain: Tensor | float = 1.0, blend: Tensor | None = None) -> Tensor:
        """f(A) applied to every row z of `rows`.

        f(A) = (gain A)^power, or (1 - blend) I + blend (gain A)^power.

        Args:
            rows: whitened queries, [..., m, r].
            power: K >= 0; 0 leaves plain ridge regression.
            gain: broadcasts against `rows`.
            blend: [..., m] in [0, 1], or None for the pure power.
        """
        filtered = rows
        for _ in range(power):
            filtered = gain * (filtered @ self.matrix.mT)
        return filtered if blend is None else torch.lerp(rows, filtered, blend.unsqueeze(-1))

    def eigenvalues(self) -> Tensor:
        """The eigenvalues of A, [..., r], complex: those of M (G + ridge I)^-1, inside the unit disk."""
        return torch.linalg.eigvals(self.matrix)
