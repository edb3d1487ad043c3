"""Bits per byte: how well a byte-level model predicts a text that it reads once, from first byte to last."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echo_ska.models.eval_mode import in_eval_mode


class TextScore(NamedTuple):
    """What reading a text gave: bits per byte over `bytes_scored` bytes, and the cache after the last one."""

    bits_per_byte: float
    bytes_scored: int
    cache: Any


class Reading(NamedTuple):
    """What reading tokens gave: -ln p in nats, summed over `tokens_scored` tokens, and the cache after the last one."""

    nats: float
    tokens_scored: int
    cache: Any


def bits_per_byte(
    model: nn.Module,
    tokens: Tensor,
    *,
    segment_length: int = 1024,
    max_bytes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TextScore:
    """Read `tokens` in segments that carry the model's state, and score every byte but the first.

    Each byte is predicted from all bytes before it, whatever the segment length: the cache goes from segment
    to segment, and only one segment's logits are in memory. The model is in eval mode meanwhile.

    Args:
        model: `model(input_ids=, past_key_values=, use_cache=True)` returns `.logits` [1, S, V] and
            `.past_key_values`.
        tokens: [N] bytes, uint8 or int64, N >= 2.
        segment_length: bytes in a forward call S, at least 1.
        max_bytes: read only that many bytes, at least 2.
        progress: called with (bytes read, bytes to read) after each segment.

    Returns:
        The mean of -log2 p(byte | all before it), the number of bytes scored, and the final cache.

    Raises:
        ValueError: for fewer than two bytes or a segment_length below 1.
    """
    if len(tokens[:max_bytes]) < 2 or segment_length < 1:
        raise ValueError(
            f"Need at least 2 bytes and a segment_length of at least 1, got {len(tokens[:max_bytes])} and "
            f"{segment_length}."
        )
    read = read_tokens(model, tokens[:max_bytes], segment_length=segment_length, progress=progress)
    return TextScore(bits(read.nats) / read.tokens_scored, read.tokens_scored, read.cache)


@torch.no_grad()
def read_tokens(
    model: nn.Module,
    tokens: Tensor,
    *,
    segment_length: int = 1024,
    progress: Callable[[int, int], None] | None = None,
) -> Reading:
    """Read tokens of any vocabulary as `bits_per_byte` does, and score every one but the first.

    Args:
        model: see `bits_per_byte`.
        tokens: [N] integers, N >= 1; one token alone is read and scores nothing.
        segment_length: tokens in a forward call S, at least 1.
        progress: called with (tokens read, tokens to read) after each segment.
    """
    total = len(tokens)
    device = next(model.parameters()).device
    with in_eval_mode(model):
        nats, cache = 0.0, None
        for start in range(0, total, segment_length):
            segment = tokens[start : start + segment_length].to(device, torch.int64)
            following = tokens[start + 1 : start + segment_length + 1].to(device, torch.int64)
            output = model(input_ids=segment[None], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            nats += summed_nats(output.logits[0, : len(following)], following)  # the last has no successor to score
            if progress is not None:
                progress(start + len(segment), total)
    return Reading(nats, total - 1, cache)


def summed_nats(logits: Tensor, tokens: Tensor) -> float:
    """-ln p, summed in float64, of tokens [...] by the logits [..., V] that predict them."""
    each = F.cross_entropy(logits.float().flatten(0, -2), tokens.flatten(), reduction="none")
    return float(each.double().sum().item())


def bits(nats: float) -> float:
    """Nats in bits."""
    return nats / math.log(2)


def over_texts(scores: Iterable[tuple[float, int]]) -> tuple[float, int]:
    """(bits per byte, bytes scored) of several texts, each of which was read from its own start.

    Args:
        scores: the same two of each text.

    Raises:
        ValueError: nothing was scored.
    """
    total, scored = 0.0, 0
    for value, count in scores:
        total, scored = total + value * count, scored + count
    if scored == 0:
        raise ValueError("The texts are of one byte each: there is nothing to score.")
    return total / scored, scored
