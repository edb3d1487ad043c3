"""Bits per byte: how well a byte-level model predicts a text that it reads once, from first byte to last."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TextScore(NamedTuple):
    """What reading a text gave: bits per byte over `bytes_scored` bytes, and the cache after the last one."""

    bits_per_byte: float
    bytes_scored: int
    cache: Any


@torch.no_grad()
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
    tokens = tokens[:max_bytes]
    total = len(tokens)
    if total < 2 or segment_length < 1:
        raise ValueError(f"Need at least 2 bytes and a segment_length of at least 1, got {total} and {segment_length}.")
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        nats, cache = 0.0, None
        for start in range(0, total, segment_length):
            segment = tokens[start : start + segment_length].to(device, torch.int64)
            following = tokens[start + 1 : start + segment_length + 1].to(device, torch.int64)
            output = model(input_ids=segment[None], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            logits = output.logits[0, : len(following)].float()  # the text's last byte has no successor to score
            nats += F.cross_entropy(logits, following, reduction="none").double().sum().item()
            if progress is not None:
                progress(start + len(segment), total)
    finally:
        model.train(was_training)
    return TextScore(nats / math.log(2) / (total - 1), total - 1, cache)
