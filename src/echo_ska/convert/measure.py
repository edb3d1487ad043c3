"""What a conversion lost and gained: held-out loss, copying, and bytes of the cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from echo_ska.convert.data import copies
from echo_ska.models.cache_echo import EchoCacheLayer
from echo_ska.tasks import accuracy
from echo_ska.training.bits_per_byte import summed_nats

CACHE_LENGTHS = (1_000, 10_000, 100_000)
"""Tokens at which cache sizes are compared."""


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
    chosen = evenly_spaced(tokens, length, windows)
    nats = sum(summed_nats(_logits(model, batch)[:, :-1], batch[:, 1:]) for batch in chosen.split(batch_size))
    return nats / chosen[:, 1:].numel()


@torch.no_grad()
def copying(model: nn.Module, vocab_size: int, period: int, *, windows: int = 64, seed: int = 0) -> float:
    """Which fraction of random tokens, read once, a model predicts when it reads them again; see `copies`.

    Args:
        model: `model(input_ids=, use_cache=False)` returns `.logits`; in eval mode.
        vocab_size: tokens to draw from.
        period: tokens to be held, at least 2; they are read twice.
        windows: sequences.
        seed: decides the tokens.

    Raises:
        ValueError: the period is below 2.
    """
    if period < 2:
        raise ValueError(f"period must be at least 2, got {period}")
    periods = torch.full((windows,), period)
    batch = copies(2 * period, periods, vocab_size, torch.Generator().manual_seed(seed))
    correct = scored = 0
    for ids, labels in zip(batch["input_ids"].split(16), batch["labels"].split(16), strict=True):
        right, asked = accuracy(_logits(model, ids), labels)
        correct, scored = correct + right, scored + asked
    return correct / scored


def evenly_spaced(tokens: Tensor, length: int, windows: int) -> Tensor:
    """At most so many windows [n, length] of `tokens` [N], as far apart as they can be; int64."""
    if len(tokens) < length or length < 4:
        raise ValueError(f"need windows of at least 4 tokens and a text that holds one, got {length} and {len(tokens)}")
    count = min(windows, len(tokens) // length)
    free = len(tokens) - length
    starts = torch.tensor([free * place // max(1, count - 1) for place in range(count)])  # float32 counts to 2^24
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


def _logits(model: nn.Module, windows: Tensor) -> Tensor:
    device = next(model.parameters()).device
    logits: Tensor = model(input_ids=windows.to(device), use_cache=False).logits
    return logits.float().cpu()
