"""The sufficient statistics of a context: three running sums, and what it takes to join them."""

from __future__ import annotations

import dataclasses
from typing import Self

import torch
from torch import Tensor

from echo_ska.algebra.record import TensorRecord


def accumulator_dtype(device: torch.device) -> torch.dtype:
    """The dtype of the running sums: float64, or float32 on devices that have no float64 (Apple's MPS).

    Why float64: where keys do not span all directions, the rounding error of a float32 sum grows like
    eps * T / ridge (docs/numerics.md).
    """
    return torch.float32 if device.type == "mps" else torch.float64


def weighted(key: Tensor, value: Tensor, write_weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """The weighted pair x = sqrt(b) k, u = sqrt(b) v of every token.

    The same weight enters both slots of every statistic; that alone keeps the operator norm below 1. The
    derivative of the square root is infinite at 0: the gradient for a weight of exactly 0 is defined as 0.

    Args:
        key: [..., H, r].
        value: [..., H, P].
        write_weight: [..., H] in [0, 1], or None for 1.
    """
    if write_weight is None:
        return key, value
    positive = write_weight > 0
    root = torch.where(positive, torch.where(positive, write_weight, 1.0).sqrt(), 0.0).unsqueeze(-1)
    return root * key, root * value


@dataclasses.dataclass
class SufficientStatistics(TensorRecord):
    """What a context leaves behind: all that a later read needs (docs/method.md).

    `a + b` is the statistics of the tokens of a followed by those of b, the pair at the boundary included;
    an empty one is the identity. Keys and values are the weighted ones. The ridge is not part of it: it belongs
    to the solve, else merging would count it twice.

    Attributes:
        gram: G = sum x_t x_t^T, [B, H, r, r], symmetric.
        lag_moment: M = sum x_t x_{t-1}^T, [B, H, r, r].
        value_moment: C = sum u_t x_t^T, [B, H, P, r].
        first_key: the first token's x, [B, H, r]; zero while empty.
        previous_key: the last token's x, [B, H, r]; zero while empty.
        count: tokens read, [B], int64. A token of weight 0 counts.
    """

    gram: Tensor
    lag_moment: Tensor
    value_moment: Tensor
    first_key: Tensor
    previous_key: Tensor
    count: Tensor

    @classmethod
    def empty(
        cls,
        batch_size: int,
        num_heads: int,
        rank: int,
        head_dim: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """The statistics of no token; `dtype` defaults to `accumulator_dtype(device)`."""
        device = torch.device(device or torch.get_default_device())
        dtype = dtype or accumulator_dtype(device)

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(batch_size, num_heads, *shape, device=device, dtype=dtype)

        return cls(
            gram=zeros(rank, rank),
            lag_moment=zeros(rank, rank),
            value_moment=zeros(head_dim, rank),
            first_key=zeros(rank),
            previous_key=zeros(rank),
            count=torch.zeros(batch_size, device=device, dtype=torch.int64),
        )

    @classmethod
    def from_tokens(cls, key: Tensor, value: Tensor, write_weight: Tensor | None = None) -> Self:
        """The statistics of T >= 1 tokens.

        Args:
            key: [B, T, H, r].
            value: [B, T, H, P].
            write_weight: [B, T, H] in [0, 1], or None for 1.

        The sums have `accumulator_dtype`; products of float32 inputs are exact in float64.
        """
        accumulator = accumulator_dtype(key.device)
        x, u = weighted(key.to(accumulator), value.to(accumulator), _cast(write_weight, accumulator))
        x, u = x.transpose(1, 2), u.transpose(1, 2)  # [B, H, T, r], [B, H, T, P]
        return cls(
            gram=x.mT @ x,
            lag_moment=x[:, :, 1:].mT @ x[:, :, :-1],
            value_moment=u.mT @ x,
            # Copies: views would keep all tokens alive, and may be the caller's own memory.
            first_key=x[:, :, 0].clone(),
            previous_key=x[:, :, -1].clone(),
            count=torch.full((key.shape[0],), key.shape[1], device=key.device, dtype=torch.int64),
        )

    def __add__(self, other: Self) -> Self:
        """The statistics of these tokens followed by those of `other`."""
        if self.value_moment.shape != other.value_moment.shape:
            raise ValueError(
                f"cannot add statistics of [batch, heads, head_dim, rank] {list(self.value_moment.shape)} and "
                f"{list(other.value_moment.shape)}: they are of another model or batch"
            )
        other_empty = (other.count == 0)[:, None, None]
        return dataclasses.replace(
            self,
            gram=self.gram + other.gram,
            lag_moment=self.lag_moment + other.lag_moment + _outer(other.first_key, self.previous_key),
            value_moment=self.value_moment + other.value_moment,
            first_key=torch.where((self.count == 0)[:, None, None], other.first_key, self.first_key),
            previous_key=torch.where(other_empty, self.previous_key, other.previous_key),
            count=self.count + other.count,
        )

    def subtract_prefix(self, prefix: Self, first_key: Tensor) -> Self:
        """The statistics of what follows `prefix`: the b of self = prefix + b.

        Args:
            prefix: the statistics of the tokens to take away.
            first_key: the weighted key of the first token after them, [B, H, r]. It stands in no sum by itself,
                and without it the pair at the boundary could not be told from the rest.

        Raises:
            ValueError: `prefix` has at least as many tokens as self (take an `empty` one for no token).
        """
        self._require_longer_than(prefix)
        return dataclasses.replace(
            self,
            gram=self.gram - prefix.gram,
            lag_moment=self.lag_moment - prefix.lag_moment - _outer(first_key, prefix.previous_key),
            value_moment=self.value_moment - prefix.value_moment,
            first_key=first_key.to(self.first_key),
            count=self.count - prefix.count,
        )

    def subtract_suffix(self, suffix: Self, previous_key: Tensor) -> Self:
        """The statistics of what comes before `suffix`: the a of self = a + suffix.

        Args:
            suffix: the statistics of the tokens to take away.
            previous_key: the weighted key of the last token before them, [B, H, r].

        Raises:
            ValueError: `suffix` has at least as many tokens as self.
        """
        self._require_longer_than(suffix)
        return dataclasses.replace(
            self,
            gram=self.gram - suffix.gram,
            lag_moment=self.lag_moment - suffix.lag_moment - _outer(suffix.first_key, previous_key),
            value_moment=self.value_moment - suffix.value_moment,
            previous_key=previous_key.to(self.previous_key),
            count=self.count - suffix.count,
        )

    def _require_longer_than(self, part: Self) -> None:
        if bool((part.count >= self.count).any()):
            raise ValueError(
                f"cannot subtract {part.count.tolist()} tokens from {self.count.tolist()}: "
                "the part taken away must be shorter than the whole"
            )


def _outer(left: Tensor, right: Tensor) -> Tensor:
    return left.unsqueeze(-1).to(right.dtype) * right.unsqueeze(-2)


def _cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)
