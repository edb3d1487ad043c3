"""The protocol that every sequence mixer follows, so that a model is nothing but a list of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from echo_ska.algebra.record import TensorRecord


class SequenceMixer(nn.Module):
    """Base class of token mixers: SKA, Mamba-2, softmax attention.

    A mixer maps `hidden_states` [B, T, d] to [B, T, d] causally: output t depends on inputs s <= t alone. It can
    start from a state and return the state after the last token, and any split of a sequence into calls gives the
    same outputs. Sequences of unequal length are packed: B = 1 and `cu_seqlens` [N + 1] (int32 or int64, from 0
    to T) holds their boundaries; states then have N rows.
    """

    def forward(
        self,
        hidden_states: Tensor,
        state: Any = None,
        *,
        cu_seqlens: Tensor | None = None,
        output_state: bool = False,
    ) -> tuple[Tensor, Any]:
        """Mix along time.

        Args:
            hidden_states: [B, T, d], or [1, T, d] with `cu_seqlens`.
            state: what an earlier call returned (rows = sequences), or None for empty ones. Never changed in place.
            cu_seqlens: [N + 1] sequence boundaries of a packed batch.
            output_state: whether to return the state after the last token of each sequence.

        Returns:
            The mixed hidden states, shape of `hidden_states`, and the state or None.
        """
        raise NotImplementedError

    def init_state(
        self, batch_size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> TensorRecord:
        """The state before the first token; equal to passing `state=None`."""
        raise NotImplementedError

    def state_bytes(self, length: int) -> int:
        """Bytes of one sequence's state after `length` tokens, in the mixer's own dtypes."""
        raise NotImplementedError
