"""The protocol that every sequence mixer follows, so that a model is nothing but a list of them."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from echo_ska.algebra.record import TensorRecord
from echo_ska.ops.arguments import check_boundaries


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

    has_state = True
    """False where a layer reads the whole sequence at once and nothing can be carried."""

    def check_inputs(self, hidden_states: Tensor, state: Any, cu_seqlens: Tensor | None) -> None:
        """Raise a ValueError, saying what to change, if a packing or a state does not fit."""
        rows = hidden_states.shape[0]
        if cu_seqlens is not None:
            rows = len(check_boundaries(cu_seqlens, rows, hidden_states.shape[1])) - 1
        if state is None:
            return
        expected = self._state_template
        if type(state) is not type(expected):
            raise ValueError(f"state must be a {type(expected).__name__}, got {type(state).__name__}")
        found = state.tensors()
        for name, tensor in expected.tensors().items():
            # A dimension that is 0 before the first token grows with every one.
            wanted = [rows, *tensor.shape[1:]]
            if name not in found or found[name].dim() != len(wanted):
                raise ValueError(f"state is of another layer: its {name} does not fit")
            shape = list(found[name].shape)
            if any(size not in (0, given) for size, given in zip(wanted, shape, strict=True)) or shape[0] != rows:
                raise ValueError(
                    f"state is of another layer or batch: its {name} is {shape}, this call's {wanted} (rows first)"
                )

    @functools.cached_property
    def _state_template(self) -> TensorRecord:
        return self.init_state(1, device="meta")

    def init_state(
        self, batch_size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> TensorRecord:
        """The state before the first token; equal to passing `state=None`."""
        raise NotImplementedError

    def state_bytes(self, length: int) -> int:
        """Bytes of one sequence's state after `length` tokens, in the mixer's own dtypes."""
        raise NotImplementedError
