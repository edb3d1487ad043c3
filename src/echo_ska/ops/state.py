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
        frozen_statistics: those that the tokens of the current chunk read, which are the sums at the last multiple of
            the `refresh_interval`: equal to `statistics` where `position` is one. None unless the op ran with one.
        position: tokens read so far, [B], int64; where the next chunk begins follows from it.
    """

    statistics: SufficientStatistics
    frozen_statistics: SufficientStatistics | None
    position: Tensor

    def is_frozen_at(self, refresh_interval: int) -> bool:
        """Whether what is frozen has been since the last multiple of this interval; asks for tensors' values."""
        if self.frozen_statistics is None:
            return False
        last = self.position.clamp_min(0) // refresh_interval * refresh_interval
        return not bool((self.frozen_statistics.count != last).any())


def choose_rows(rows: Tensor, then: SufficientStatistics, otherwise: SufficientStatistics) -> SufficientStatistics:
    """`then` in the batch rows where `rows` [B] is true, `otherwise` in the others."""
    return SufficientStatistics(
        **{
            name: torch.where(rows.reshape(-1, *[1] * (tensor.dim() - 1)), tensor, getattr(otherwise, name))
            for name, tensor in then.tensors().items()
        }
    )
