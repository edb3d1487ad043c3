"""How well a text is predicted from contexts of several lengths: bits per byte of the same bytes at every length.

    text       ....................................................................................
    blocks            ########                    ########                    ########       scored, C / 2 bytes each
    c = C      -------########                                     C: the longest context
    c = C / 2         ....
                  ----####                                         a window of c bytes, read from an empty state,
                      ----####                                     of which the second half is scored
    c = C / 4           ..
                    --##
                      --##
                        --##
                          --##

A byte is predicted from the c/2 to c - 1 bytes before it and from nothing else, whatever the model, so that what
changes along the curve is the context alone. (The loss by position in one long window costs a seventh, but scores every
length on other bytes, and the short ones on few: the curve then shows the texts' own ups and downs.) Two bytes are read
for each that is scored, at each length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from echo_ska.models.eval_mode import in_eval_mode
from echo_ska.training.bits_per_byte import bits, summed_nats

BYTES_AT_ONCE = 16_384
"""Of windows that are read in one call, unless one window is longer."""


def block_starts(length: int, longest: int, blocks: int) -> list[int]:
    """Where blocks of longest / 2 bytes begin: evenly spread over a text, none overlapping, as many as fit at most.

    Raises:
        ValueError: the text is shorter than the longest context, or `blocks` is below 1.
    """
    if length < longest or blocks < 1:
        raise ValueError(
            f"Need a text of at least the longest context and at least 1 block, got {length:,} bytes, a context of "
            f"{longest:,} and {blocks} blocks."
        )
    half = longest // 2
    fitting = min(blocks, (length - half) // half)
    free = length - longest  # the first block begins at `half`, the last one ends with the text
    return [half + (free * place // (fitting - 1) if fitting > 1 else free // 2) for place in range(fitting)]


@torch.no_grad()
def bits_by_context(
    model: nn.Module,
    texts: Sequence[Tensor],
    contexts: Sequence[int],
    blocks: int,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> dict[int, float]:
    """Bits per byte of some blocks of texts by the length of the context. The model is in eval mode meanwhile.

    Args:
        model: `model(input_ids=, use_cache=False)` returns `.logits` [B, T, V].
        texts: rows of bytes, uint8 or int64, each at least as long as the longest context.
        contexts: their lengths c, even, each of which divides the longest.
        blocks: of each text, at least 1.
        progress: called with (bytes read, bytes to read) after each call of the model.

    Returns:
        By context, the mean of -log2 p(byte | c/2 to c - 1 bytes before it) over all blocks of all texts.

    Raises:
        ValueError: there is no text or no context, one is too short or does not fit, or `blocks` is below 1.
    """
    longest = max(contexts, default=0)
    if not texts or longest == 0 or any(c < 2 or c % 2 or longest % c for c in contexts):
        raise ValueError(
            f"Need texts, and contexts that are even and divide the longest, got {len(texts)} texts, {list(contexts)}."
        )
    starts = [block_starts(len(text), longest, blocks) for text in texts]
    scored = sum(map(len, starts)) * (longest // 2)
    device = next(model.parameters()).device
    read = 0
    with in_eval_mode(model):
        found = {}
        for context in contexts:
            nats = 0.0
            for windows in _batches(texts, starts, context, longest // 2):  # [B, c]
                tokens = windows.to(device, torch.int64)
                half = context // 2
                logits = model(input_ids=tokens, use_cache=False).logits[:, half - 1 : -1]
                nats += summed_nats(logits, tokens[:, half:])
                read += tokens.numel()
                if progress is not None:
                    progress(read, 2 * scored * len(contexts))
            found[context] = bits(nats) / scored
    return found


def _batches(texts: Sequence[Tensor], starts: Sequence[Sequence[int]], context: int, block: int) -> Iterator[Tensor]:
    """Windows of `context` bytes whose second halves tile the blocks, several in a batch."""
    half = context // 2
    windows = [
        text[at - half : at + half]
        for text, begins in zip(texts, starts, strict=True)
        for begin in begins
        for at in range(begin, begin + block, half)
    ]
    together = max(1, BYTES_AT_ONCE // context)
    for first in range(0, len(windows), together):
        yield torch.stack(windows[first : first + together])
