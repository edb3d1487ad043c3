"""One block: a sequence mixer, then a feed-forward layer, each behind a norm and around a residual."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from echo_ska.nn.aids import left_out_at_random, require_probability
from echo_ska.nn.mixer import SequenceMixer


class Block(nn.Module):
    """h + mixer(norm(h)), then h + feed_forward(norm(h)).

    Args:
        hidden_size: d.
        mixer: any sequence mixer of that width.
        feed_forward: maps [..., d] to [..., d]; None leaves it out.
        norm_eps: epsilon of the norms.
        mixer_dropout: in training, the probability that a sequence goes past the mixer (stochastic depth).

    Raises:
        ValueError: `mixer_dropout` is not in [0, 1).
    """

    def __init__(
        self,
        hidden_size: int,
        mixer: SequenceMixer,
        feed_forward: nn.Module | None,
        norm_eps: float = 1e-5,
        *,
        mixer_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        require_probability("mixer_dropout", mixer_dropout)
        self.mixer_dropout = mixer_dropout
        self.mixer_norm = nn.RMSNorm(hidden_size, eps=norm_eps)
        self.mixer = mixer
        self.feed_forward_norm = None if feed_forward is None else nn.RMSNorm(hidden_size, eps=norm_eps)
        self.feed_forward = feed_forward

    def forward(
        self,
        hidden_states: Tensor,
        state: Any = None,
        *,
        cu_seqlens: Tensor | None = None,
        output_state: bool = False,
        in_place: bool = False,
    ) -> tuple[Tensor, Any]:
        """[B, T, d] -> [B, T, d] and the mixer's state; see `SequenceMixer.forward`.

        With `in_place`, one token a row [N, 1, d] changes a prepared `state`; see `SequenceMixer.advance`. It is an
        argument rather than a method so that what is hooked to the block's call sees decoding too.
        """
        normed = self.mixer_norm(hidden_states)
        if in_place:
            mixed = self.mixer.advance(normed, state)
        else:
            mixed, state = self.mixer(normed, state, cu_seqlens=cu_seqlens, output_state=output_state)
            if self.training and self.mixer_dropout > 0:
                # A part does not know which of all sequences its own are: one draw for all, the same in every part.
                sequences = cu_seqlens if self.mixer.exchange is None else None
                mixed = left_out_at_random(mixed, self.mixer_dropout, sequences)
        hidden_states = hidden_states + mixed
        if self.feed_forward is not None and self.feed_forward_norm is not None:
            hidden_states = hidden_states + self.feed_forward(self.feed_forward_norm(hidden_states))
        return hidden_states, state
