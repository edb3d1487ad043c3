"""Random inputs of the routes, by kind. Tensors are [1, T, H, width]."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from echo_ska.benchmarks.plan import Sizes

Inputs = dict[str, Any]
"""Tensors by the names of the arguments they are given for."""


class Source:
    """Random tensors of one dtype on one device, from a seed."""

    def __init__(self, dtype: torch.dtype, device: torch.device | str, seed: int = 0) -> None:
        self.dtype, self.device = dtype, torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(seed)

    def empty(self, *shape: int) -> Tensor:
        """To be filled by the caller."""
        return torch.empty(*shape, dtype=self.dtype, device=self.device)

    def normal(self, *shape: int) -> Tensor:
        """Of variance 1."""
        return torch.randn(*shape, generator=self.generator, dtype=self.dtype, device=self.device)

    def unit(self, *shape: int) -> Tensor:
        """Vectors of norm 1 along the last dimension."""
        return F.normalize(self.normal(*shape), dim=-1)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Between two numbers."""
        drawn = torch.rand(*shape, generator=self.generator, dtype=self.dtype, device=self.device)
        return drawn.mul_(high - low).add_(low)


def _regression(sizes: Sizes, source: Source, tokens: int) -> Inputs:
    return {
        "query": source.unit(1, tokens, sizes.heads, sizes.rank),
        "key": source.unit(1, tokens, sizes.heads, sizes.rank),
        "value": source.normal(1, tokens, sizes.heads, sizes.head_dim),
    }


def _softmax(sizes: Sizes, source: Source, tokens: int) -> Inputs:
    return {name: source.normal(1, tokens, sizes.heads, sizes.head_dim) for name in ("query", "key", "value")}


def _scan(sizes: Sizes, source: Source, tokens: int) -> Inputs:
    return {
        "x": source.normal(1, tokens, sizes.heads, sizes.head_dim),
        "dt": source.uniform(1e-3, 1e-1, 1, tokens, sizes.heads),
        "A": -source.uniform(1.0, 16.0, sizes.heads),
        "B": source.normal(1, tokens, sizes.state_size),
        "C": source.normal(1, tokens, sizes.state_size),
    }


def _gated(sizes: Sizes, source: Source, tokens: int) -> Inputs:
    return _regression(sizes, source, tokens) | {
        "log_decay": F.logsigmoid(3 + source.normal(1, tokens, sizes.heads)),
        "write_weight": source.uniform(0.1, 0.9, 1, tokens, sizes.heads),
    }


def _square_gated(sizes: Sizes, source: Source, tokens: int) -> Inputs:
    shape = (1, tokens, sizes.heads, sizes.head_dim)
    return _gated(sizes, source, tokens) | {"query": source.unit(*shape), "key": source.unit(*shape)}


INPUTS: dict[str, Callable[[Sizes, Source, int], Inputs]] = {
    "regression": _regression,
    "softmax": _softmax,
    "scan": _scan,
    "gated": _gated,
    "square gated": _square_gated,
}
"""regression: queries and keys of unit norm and width r, values of width P. softmax: all of width P. scan: Mamba-2's.
gated: regression's with a decay and a write weight; square gated: the same with keys as wide as values."""


def tokens_of(inputs: Inputs, begin: int, end: int) -> Inputs:
    """The inputs of some tokens; what is not a token's (Mamba-2's rates [H]) stays."""
    return {name: tensor[:, begin:end] if tensor.dim() > 1 else tensor for name, tensor in inputs.items()}
