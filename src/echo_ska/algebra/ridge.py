"""The ridge-regularised Gram matrix, factored once and applied to several right-hand sides."""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class RidgeFactor:
    """G + ridge I = L L^T. The only place in Echo's PyTorch code where a matrix is factored.

    Rows are vectors: `whiten` maps each row y to L^-1 y.

    Attributes:
        lower: L, [..., n, n], lower triangular.
        info: 0 where the factorisation succeeded, [...], int32; otherwise the order of the first minor that is
            not positive definite.
    """

    lower: Tensor
    info: Tensor

    @classmethod
    def of(cls, gram: Tensor, ridge: Tensor | float) -> RidgeFactor:
        """Factor a Gram matrix.

        Args:
            gram: [..., n, n], symmetric positive semidefinite, float32 or float64.
            ridge: > 0; a scalar, or a tensor [..., 1, 1] that broadcasts against `gram` (per head: [H, 1, 1]).
        """
        matrix = gram.clone()
        per_matrix = ridge.squeeze(-1) if isinstance(ridge, Tensor) and ridge.dim() > 1 else ridge
        matrix.diagonal(dim1=-2, dim2=-1).add_(per_matrix)
        return cls(*torch.linalg.cholesky_ex(matrix))

    def require_success(self, batch_rows: Tensor | None = None) -> RidgeFactor:
        """Self, if every factorisation succeeded.

        Args:
            batch_rows: the batch row behind each entry of the first axis, where that axis is not the batch itself.

        Raises:
            ArithmeticError: names the batch row and head of the first failure. Raise the ridge, or look for keys
                that are not finite.
        """
        if bool((self.info != 0).any()):
            first = (self.info != 0).nonzero()[0].tolist()
            if batch_rows is not None:
                first[0] = int(batch_rows[first[0]])
            names = ["head"] if len(first) == 1 else ["batch row", *["axis"] * (len(first) - 2), "head"]
            place = ", ".join(f"{name} {index}" for name, index in zip(names, first, strict=True))
            raise ArithmeticError(
                f"the Gram matrix plus the ridge is not positive definite in {self.lower.dtype} at {place} "
                f"({int((self.info != 0).sum())} of {self.info.numel()} failed): raise the ridge, or look for keys "
                "that are not finite"
            )
        return self

    @functools.cached_property
    def inverse_lower(self) -> Tensor:
        """L^-1, [..., n, n]."""
        identity = torch.eye(self.lower.shape[-1], device=self.lower.device, dtype=self.lower.dtype)
        return self.combine(identity.expand_as(self.lower))

    def combine(self, rows: Tensor) -> Tensor:
        """L^-1 rows, [..., n, m]: each row becomes a combination of itself and the rows before it.

        Solved transposed, from the right: row-major rows then need no copy, and float32 is about twice as fast.
        """
        return torch.linalg.solve_triangular(self.lower.mT, rows.mT, upper=True, left=False).mT

    def whiten(self, rows: Tensor) -> Tensor:
        """L^-1 applied to every row of `rows`, [..., m, n]."""
        return rows @ self.inverse_lower.mT

    def solve(self, rows: Tensor) -> Tensor:
        """(G + ridge I)^-1 applied to every row of `rows`, [..., m, n]."""
        return self.whiten(rows) @ self.inverse_lower
