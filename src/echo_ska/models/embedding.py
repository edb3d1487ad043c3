"""The embedding of tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ScaledEmbedding(nn.Embedding):
    """An embedding whose rows are multiplied by sqrt(d) on the way in.

    Its weights start with standard deviation 1 / sqrt(d), so the residual stream starts with tokens of unit size
    whatever the width, and what the first mixers add does not drown which token it was.
    """

    @property
    def embed_scale(self) -> Tensor:
        """sqrt(d), float32 []: the name by which PEFT asks what it must multiply adapted rows by."""
        return torch.tensor(self.embedding_dim**0.5, dtype=torch.float32, device=self.weight.device)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.embedding_dim**-0.5)

    def forward(self, input_ids: Tensor) -> Tensor:
        """[B, T] int64 -> [B, T, d]."""
        return super().forward(input_ids) * self.embedding_dim**0.5
