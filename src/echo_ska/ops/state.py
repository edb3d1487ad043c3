"""What the op carries from one call to the next."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from echo_ska.algebra import SufficientStatistics, TensorRecord


@dataclasses.dataclass
class RecurrentState(TensorRecord):
    """The state of Spectral Koopman Attention: its size does not depend on the number of tokens read.

    Attributes:
        statistics: of every token so far.
        frozen_statistics: those that the tokens of the current chunk read; None unless the op ran with a
            `refresh_interval`.
        position: tokens read so far, [B], int64; where the next chunk begins follows from it.
    """

    statistics: SufficientStatistics
    frozen_statistics: SufficientStatistics | None
    position: Tensor


def choose_rows(rows: Tensor, then: SufficientStatistics, otherwise: SufficientStatistics) -> SufficientStatistics:
    """`then` in the batch rows where `rows` [B] is true, `otherwise` in the others."""
    return SufficientStatistics(
        **{
            name: torch.where(rows.reshape(-1, *[1] * (tensor.dim() - 1)), tensor, getattr(otherwise, name))
            for name, tensor in then.tensors().items()
        }
    )
