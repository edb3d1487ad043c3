"""Reading a long text in segments that hand the model's cache on: memory for one segment, whatever the length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

SEGMENT_LENGTH = 4096


def read_in_segments(
    model: nn.Module,
    input_ids: Tensor,
    segment_length: int = SEGMENT_LENGTH,
    *,
    past_key_values: Any = None,
    use_cache: bool = True,
    more: Callable[[int, int], dict[str, Any]] | None = None,
) -> Iterator[tuple[int, Any]]:
    """Call the model on one segment after the other.

    Args:
        model: `model(input_ids=, past_key_values=, use_cache=, ...)` returns `.past_key_values` and whatever else.
        input_ids: [B, T] int64.
        segment_length: tokens of a row in one call, at least 1; the last segment may be shorter.
        past_key_values: what to go on from, or None.
        use_cache: whether the cache is handed on; may be False where there is but one segment.
        more: (first token, token after the last) of a segment to further keyword arguments of its call.

    Yields:
        The first token of each segment, and what the model returned for it.

    Raises:
        ValueError: a segment_length below 1.
    """
    if segment_length < 1:
        raise ValueError(f"segment_length must be at least 1, got {segment_length}")
    length = input_ids.shape[1]
    for begin in range(0, length, segment_length):
        end = min(begin + segment_length, length)
        output = model(
            input_ids=input_ids[:, begin:end],
            past_key_values=past_key_values,
            use_cache=use_cache,
            **(more(begin, end) if more is not None else {}),
        )
        past_key_values = output.past_key_values
        yield begin, output
