"""What a conversion lost and gained: held-out loss, copying, and bytes of the cache."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echo_ska.models.cache_echo import EchoCacheLayer
from echo_ska.training import DataSource
from echo_ska.training.data import step_generator

CACHE_LENGTHS = (1_000, 10_000, 100_000)
"""Tokens at which cache sizes are compared."""


class TokenWindows:
    """Random windows of a text of tokens: what a converted model is distilled on.

    Args:
        tokens: [N], any integer dtype.
        batch_size: windows in a batch B.
        length: tokens in a window T.
        seed: any integer; other seeds give independent batches.

    Raises:
        ValueError: there are fewer tokens than a window takes, or a number is too small.
    """

    def __init__(self, tokens: Tensor, batch_size: int, length: int, seed: int) -> None:
        if batch_size < 1 or length < 2:
            raise ValueError(f"need batch_size >= 1 and length >= 2, got {batch_size} and {length}")
        if len(tokens) < length:
            raise ValueError(f"the text has {len(tokens)} tokens, less than one window of {length}: give more text")
        self.tokens, self.batch_size, self.length, self.seed = tokens, batch_size, length, seed

    def batch(self, step: int) -> dict[str, Tensor]:
        """The windows of step `step`: `input_ids` and `labels` (equal: the model shifts), int64 [B, T]."""
        generator = step_generator(self.seed, step)
        starts = torch.randint(len(self.tokens) - self.length + 1, (self.batch_size, 1), generator=generator)
        windows = self.tokens[starts + torch.arange(self.length)].long()
        return {"input_ids": windows, "labels": windows.clone()}

    def describe(self) -> dict[str, Any]:
        """Tokens and their sum, the window and the seed."""
        return {
            "tokens": len(self.tokens),
            "sum": int(self.tokens.long().sum()),
            "batch_size": self.batch_size,
            "length": self.length,
            "seed": self.seed,
        }


class WithCopying:
    """Another source's batches, every so many-th with its windows' second half repeating the first.

    In those, only what repeats counts: the second half but for its first token, which nothing announces.

    Args:
        source: gives the windows.
        every: which batches copy: number `every` - 1, 2 `every` - 1, ...; at least 2.
    """

    def __init__(self, source: DataSource, every: int = 4) -> None:
        if every < 2:
            raise ValueError(f"every must be at least 2, got {every}")
        self.source, self.every = source, every

    def batch(self, step: int) -> dict[str, Tensor]:
        """The batch of step `step`; see `repeated`."""
        batch = self.source.batch(step)
        return repeated(batch["input_ids"]) if step % self.every == self.every - 1 else batch

    def describe(self) -> dict[str, Any]:
        """The source, and how often it is copied."""
        return {"source": self.source.describe(), "copied_every": self.every}


def repeated(windows: Tensor) -> dict[str, Tensor]:
    """[B, T] windows whose second half repeats the first, as a batch in which that alone is scored."""
    half = windows.shape[1] // 2
    twice = torch.cat([windows[:, :half], windows[:, :half]], dim=1)
    labels = twice.clone()
    labels[:, : half + 1] = -100
    return {"input_ids": twice, "labels": labels}


@torch.no_grad()
def held_out_loss(model: nn.Module, tokens: Tensor, length: int, *, windows: int = 64, batch_size: int = 16) -> float:
    """Mean cross-entropy in nats of a token, over evenly spaced windows of `tokens` [N] without a history.

    Args:
        model: `model(input_ids=, use_cache=False)` returns `.logits`; in eval mode.
        tokens: [N] held-out tokens.
        length: of a window; its first token is not scored.
        windows: at most so many.
        batch_size: of a forward call.

    Raises:
        ValueError: there are fewer tokens than a window takes.
    """
    losses = []
    for batch in evenly_spaced(tokens, length, windows).split(batch_size):
        losses.append(_token_losses(model, batch).flatten())
    return float(torch.cat(losses).double().mean())


@torch.no_grad()
def copying(
    model: nn.Module, tokens: Tensor, length: int, *, windows: int = 64, batch_size: int = 16
) -> dict[str, float]:
    """How well a model repeats what it has just read: windows whose second half is their first once more.

    Args and errors: as `held_out_loss`.

    Returns:
        `first` and `again`, the mean cross-entropy in nats of a token in either half, and `accuracy`, the fraction of
        the repeated tokens that are the model's likeliest.
    """
    half, first, again, right = length // 2, [], [], []
    for batch in evenly_spaced(tokens, length, windows).split(batch_size):
        twice = repeated(batch)["input_ids"]
        logits = _logits(model, twice)
        losses = F.cross_entropy(logits[:, :-1].mT, twice[:, 1:], reduction="none")
        first.append(losses[:, : half - 1].flatten())
        again.append(losses[:, half:].flatten())
        right.append((logits[:, half:-1].argmax(-1) == twice[:, half + 1 :]).float().flatten())
    mean = {"first": first, "again": again, "accuracy": right}
    return {name: float(torch.cat(parts).double().mean()) for name, parts in mean.items()}


def evenly_spaced(tokens: Tensor, length: int, windows: int) -> Tensor:
    """At most so many windows [n, length] of `tokens` [N], as far apart as they can be; int64."""
    if len(tokens) < length or length < 4:
        raise ValueError(f"need windows of at least 4 tokens and a text that holds one, got {length} and {len(tokens)}")
    count = min(windows, len(tokens) // length)
    starts = torch.linspace(0, len(tokens) - length, count).long()
    return tokens[starts[:, None] + torch.arange(length)].long()


def cache_bytes(cache: Any) -> int:
    """Bytes that a cache holds now, SKA's states compact (as they are kept), keys and values as they are."""
    total = 0
    for layer in cache.layers:
        if isinstance(layer, EchoCacheLayer):
            total += 0 if layer.state is None else layer.state.compact().nbytes
        elif layer.is_initialized:
            total += layer.keys.nbytes + layer.values.nbytes
    return total


def bits(nats: float) -> float:
    """Nats in bits."""
    return nats / math.log(2)


def _logits(model: nn.Module, windows: Tensor) -> Tensor:
    device = next(model.parameters()).device
    logits: Tensor = model(input_ids=windows.to(device), use_cache=False).logits
    return logits.float().cpu()


def _token_losses(model: nn.Module, windows: Tensor) -> Tensor:
    """[B, T] -> [B, T - 1]."""
    return F.cross_entropy(_logits(model, windows)[:, :-1].mT, windows[:, 1:], reduction="none")

