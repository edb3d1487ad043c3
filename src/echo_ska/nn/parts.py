"""What a mixer asks where its tokens are one part of longer sequences, whose other parts other processes hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, Self, TypeVar

from torch import Tensor


class PartSummary(Protocol):
    """What the tokens after a part need of it: a `TensorRecord` whose size does not depend on how many there are.

    `a + b` is the summary of the tokens of a followed by those of b, and is associative; a record of zeros is that of
    no token.
    """

    def __add__(self, other: Self, /) -> Self: ...

    def map(self, function: Callable[[Tensor], Tensor]) -> Self: ...

    def tensors(self) -> dict[str, Tensor]: ...


Summary = TypeVar("Summary", bound=PartSummary)


class PartExchange(Protocol):
    """How a mixer learns what came before its part (`echo_ska.parallel`), through which gradients flow back.

    All processes that hold a part of the sequences call the same methods in the same order. The sequences are a dense
    batch, one row each; or packed, [1, T] with `cu_seqlens` [N + 1]: then sequence 0 is the one that the part before
    ended in, of no token here if another begins with this part.
    """

    def inputs_before(self, last: Tensor, start: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
        """The inputs of a short convolution before this part, [N, history, C], oldest first.

        Args:
            last: this part's last inputs, [B, history, C].
            start: what the first part begins with, [N, history, C]; None for zeros.
            cu_seqlens: boundaries of packed sequences, or None.
        """
        ...

    def summary_before(self, own: Summary, cu_seqlens: Tensor | None) -> Summary:
        """The summary of all that comes before this part, N rows.

        Args:
            own: that of this part's tokens, read from nothing: B rows; of packed sequences the last one's, one row.
            cu_seqlens: boundaries of packed sequences, or None.
        """
        ...


def last_sequence(tokens: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """The tokens that the next part may go on from: all of [B, T, ...], or those of the last packed sequence."""
    return tokens if cu_seqlens is None else tokens[:, int(cu_seqlens[-2]) :]


def last_tokens(tokens: Tensor, count: int) -> Tensor:
    """The last `count` of [B, T, ...]."""
    return tokens[:, tokens.shape[1] - count :]
