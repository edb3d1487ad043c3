"""Query, key and value projections with the aids that make recall learnable, shared by every mixer that has keys."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from echo_ska.nn.aids import require_whole
from echo_ska.nn.convolution import ShortConvolution
from echo_ska.nn.initialization import start_as


def head_width(hidden_size: int, num_heads: int, head_dim: int | None) -> int:
    """`head_dim`, or hidden_size / num_heads where it is None.

    Raises:
        ValueError: it is None and num_heads does not divide hidden_size, or one of them is no whole number above 0.
    """
    for name, size in (("hidden_size", hidden_size), ("num_heads", num_heads)):
        require_whole(name, size, 1)
    require_whole("head_dim", head_dim, 1, optional=True)
    if head_dim is not None:
        return head_dim
    if hidden_size % num_heads:
        raise ValueError(f"hidden_size {hidden_size} is no multiple of num_heads {num_heads}: give head_dim")
    return hidden_size // num_heads


class QueryKeyValue(nn.Module):
    """Linear projections, then one short causal convolution on all of their channels.

    Two choices of the start decide how soon and how surely recall is learnt (docs/method.md):

    - W_q starts equal to W_k: a query finds its own key from the first step on.
    - The keys' convolution starts as a delay of one token, those of queries and values as the identity: each
      value is stored under the key before it, where it stands in "cue, answer" sequences.

    Args:
        hidden_size: d.
        num_heads: H.
        key_dim: width of queries and keys, r.
        value_dim: width of values, P.
        conv_kernel: taps of the convolution; None leaves it out (and with it the delay).
        key_delay: tokens by which keys start delayed.
        tied_start: whether W_q starts equal to W_k.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        num_heads: int,
        key_dim: int,
        value_dim: int,
        conv_kernel: int | None = 4,
        key_delay: int = 1,
        tied_start: bool = True,
    ) -> None:
        super().__init__()
        self.num_heads, self.key_dim, self.value_dim, self.tied_start = num_heads, key_dim, value_dim, tied_start
        self.widths = [num_heads * key_dim, num_heads * key_dim, num_heads * value_dim]
        self.q_proj = nn.Linear(hidden_size, self.widths[0], bias=False)
        self.k_proj = nn.Linear(hidden_size, self.widths[1], bias=False)
        self.v_proj = nn.Linear(hidden_size, self.widths[2], bias=False)
        self.convolution = None
        if conv_kernel is not None:
            if not 0 <= key_delay < conv_kernel:
                raise ValueError(
                    f"conv_kernel must be above key_delay, which is {key_delay}, got {conv_kernel}: give more taps, or "
                    "None for no convolution and no delay"
                )
            delays = [0] * self.widths[0] + [key_delay] * self.widths[1] + [0] * self.widths[2]
            self.convolution = ShortConvolution(sum(self.widths), conv_kernel, delay=delays)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start W_q from W_k; the other parameters start as their modules start them."""
        if self.tied_start:
            start_as(self.q_proj.weight, self.k_proj.weight)

    @property
    def history(self) -> int:
        """Tokens before a token that the convolution reads."""
        return 0 if self.convolution is None else self.convolution.kernel_size - 1

    def init_tail(self, batch_size: int, *, device: torch.device | str | None, dtype: torch.dtype | None) -> Tensor:
        """The convolution's inputs before the first token: zeros [N, kernel - 1, H (2 r + P)]."""
        return torch.zeros(batch_size, self.history, sum(self.widths), device=device, dtype=dtype)

    def forward(
        self,
        hidden_states: Tensor,
        tail: Tensor | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        output_state: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """[B, T, d] -> query and key [B, T, H, r], value [B, T, H, P], and the convolution's last inputs or None."""
        projected = self.project(hidden_states)
        if self.convolution is not None:
            projected, tail = self.convolution(projected, tail, cu_seqlens=cu_seqlens, output_state=output_state)
        elif output_state and tail is None:
            rows = hidden_states.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1
            tail = self.init_tail(rows, device=projected.device, dtype=projected.dtype)
        return *self._heads(projected), tail if output_state else None

    def step(self, hidden_states: Tensor, tail: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[N, d] -> query and key [N, H, r], value [N, H, P]; changes `tail` in place."""
        projected = self.project(hidden_states)
        return self._heads(projected if self.convolution is None else self.convolution.step(projected, tail))

    def project(self, hidden_states: Tensor) -> Tensor:
        """[..., d] -> the convolution's inputs [..., H (2 r + P)]."""
        return torch.cat([self.q_proj(hidden_states), self.k_proj(hidden_states), self.v_proj(hidden_states)], dim=-1)

    def _heads(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = projected.split(self.widths, dim=-1)
        return (
            query.unflatten(-1, (self.num_heads, self.key_dim)),
            key.unflatten(-1, (self.num_heads, self.key_dim)),
            value.unflatten(-1, (self.num_heads, self.value_dim)),
        )
