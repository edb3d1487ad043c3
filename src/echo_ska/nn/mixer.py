"""The protocol that every sequence mixer follows, so that a model is nothing but a list of them."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Self

import torch
from torch import Tensor, nn

from echo_ska.algebra.record import TensorRecord
from echo_ska.nn.parts import PartExchange
from echo_ska.ops.arguments import check_boundaries

KEPT_IN_FLOAT32 = ("raw_ridge", "gain", "scale", "blend_weight", "blend_bias", "A_log", "dt_bias", "D")
"""Parameters that stay in float32 where a model is loaded in half precision, by their names in mixers.

They steer exponentials and solves, or (`scale`, `D`) weigh what comes of these.
"""


@dataclasses.dataclass
class MixerState(TensorRecord):
    """What a mixer carries, N rows (one a sequence). `forward` returns one, `step` changes one in place."""

    def compact(self) -> Self:
        """The same state as `forward` returns it, without what only `step` needs: the form to keep, save or merge.

        It is the state itself where there is nothing to leave out.
        """
        return self


class SequenceMixer(nn.Module):
    """Base class of token mixers: SKA, Mamba-2, softmax attention.

    A mixer maps `hidden_states` [B, T, d] to [B, T, d] causally: output t depends on inputs s <= t alone. It can
    start from a state and return the state after the last token, and any split of a sequence into calls gives the
    same outputs. Sequences of unequal length are packed: B = 1 and `cu_seqlens` [N + 1] (int32 or int64, from 0
    to T) holds their boundaries; states then have N rows.

    To decode, `step` reads one token a row and updates a state in place. `forward` and `step` take each other's
    states. A step is two parts, `prepare` and `advance`, so that the second can be compiled or exported.
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
            state: what an earlier call or step left (rows = sequences), or None for empty ones. Never changed in place.
            cu_seqlens: [N + 1] sequence boundaries of a packed batch.
            output_state: whether to return the state after the last token of each sequence.

        Returns:
            The mixed hidden states, shape of `hidden_states`, and the state or None.
        """
        raise NotImplementedError

    @torch.no_grad()
    def step(self, hidden_states: Tensor, state: Any) -> Tensor:
        """Decode one token a row, without gradients, changing `state` in place.

        The state is the caller's own: what shares memory with it (not a clone, a deep copy or selected rows) changes
        too. A state that a gradient will still flow through must be cloned first.

        Args:
            hidden_states: [N, 1, d], one token of every sequence.
            state: what `init_state`, `forward` or earlier steps left, of N rows; any form of it.

        Returns:
            The mixed hidden states, [N, 1, d].

        Raises:
            ValueError: the shapes do not fit, or the layer has no state.
            ArithmeticError: an SKA layer's sums are not finite or no longer positive definite.
        """
        if not self.has_state:
            raise ValueError("a layer that reads the whole sequence cannot decode: run it on whole sequences")
        if hidden_states.dim() != 3 or hidden_states.shape[1] != 1:
            raise ValueError(f"a step takes one token a row, [rows, 1, d], got {list(hidden_states.shape)}")
        self.check_inputs(hidden_states, state, None)
        self.prepare(state)
        return self.advance(hidden_states, state)

    def prepare(self, state: Any) -> None:
        """What has to be decided on the host before the next token: once before every `advance`.

        It brings `state` into the form that `advance` works on, makes room, or does work that is due every so many
        tokens. Nothing that the state says is changed.
        """

    def advance(self, hidden_states: Tensor, state: Any) -> Tensor:
        """`step` after `prepare`: a program on tensors alone, which `torch.compile` and `torch.export` take whole."""
        raise NotImplementedError

    hidden_size: int | None = None
    """Width d of the tokens, which calls are held to; None where a mixer does not say."""

    has_state = True
    """False where a layer reads the whole sequence at once and nothing can be carried."""

    has_summary = False
    """Whether `forward` asks `exchange`: what came before a part of a sequence is then known from summaries that add.

    Where a state is given as well, every process gives the same one: that before the first part.
    """

    exchange: PartExchange | None = None
    """Set where the layer's tokens are one part of sequences that several processes hold; see `echo_ska.parallel`."""

    @property
    def history(self) -> int:
        """Tokens before a part whose projections its short convolution reads; a part must have at least as many."""
        return 0

    def check_inputs(self, hidden_states: Tensor, state: Any, cu_seqlens: Tensor | None) -> None:
        """Raise a ValueError, saying what to change, if the input's shape, a packing or a state does not fit."""
        if hidden_states.dim() != 3:
            raise ValueError(f"hidden_states must be [batch, time, hidden_size], got {list(hidden_states.shape)}")
        width = hidden_states.shape[2]
        if self.hidden_size is not None and width != self.hidden_size:
            raise ValueError(
                f"hidden_states must be [batch, time, {self.hidden_size}], as wide as the layer's hidden_size, got "
                f"{list(hidden_states.shape)}: build the layer with hidden_size={width}, or give it tokens of its width"
            )
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
    def _state_template(self) -> MixerState:
        return self.init_state(1, device="meta")

    def init_state(
        self, batch_size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> MixerState:
        """The state before the first token; equal to passing `state=None`."""
        raise NotImplementedError

    def state_bytes(self, length: int) -> int:
        """Bytes of one sequence's state after `length` tokens, compact, in the mixer's own dtypes."""
        raise NotImplementedError
