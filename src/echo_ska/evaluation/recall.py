"""Accuracy on a recall task at any length: long sequences are read in segments that carry the model's state."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from echo_ska.models.eval_mode import in_eval_mode
from echo_ska.models.segments import SEGMENT_LENGTH, read_in_segments
from echo_ska.tasks import RecallBatch, RecallTask, answer_positions


@torch.no_grad()
def recall_accuracy(
    model: nn.Module,
    task: RecallTask,
    length: int,
    sequences: int,
    seed: int,
    segment_length: int = SEGMENT_LENGTH,
    *,
    token_budget: int = 16_384,
    progress: Callable[[int, int], None] | None = None,
) -> float:
    """Fraction of the answers whose most likely token is right, over `sequences` sequences of `length` tokens.

    Sequences are drawn one by one, so that sequence i depends on `seed` and i alone, and neither `segment_length` nor
    `token_budget` changes what is asked. A sequence longer than `segment_length` is read in segments that hand the
    model's cache on: beside that cache, activations take memory for `token_budget` tokens (or one segment, if longer)
    and the drawn tokens 16 bytes each. Logits are computed only where answers stand. The model is in eval mode
    meanwhile.

    Args:
        model: `model(input_ids=, past_key_values=, use_cache=, logits_to_keep=)` returns `.logits` [B, K, V] at the
            K positions that `logits_to_keep`, int64, names, and `.past_key_values`.
        task: what to ask; its own length does not matter.
        length: tokens in a sequence T.
        sequences: sequences to read, at least 1.
        seed: any integer. Training draws its batches from other streams (`echo_ska.training.RecallData`).
        segment_length: tokens of a sequence in one forward call, at least 1.
        token_budget: tokens of all sequences in one forward call; sets the batch size, which is at least 1.
        progress: called with (tokens read, tokens to read) after each forward call.

    Returns:
        The accuracy, 0 to 1.

    Raises:
        ValueError: for a length that the task does not fit, a number below 1, or a task that asks nothing.
    """
    for name, value in (("sequences", sequences), ("segment_length", segment_length), ("token_budget", token_budget)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    task = task.with_length(length)
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    rows = max(1, token_budget // min(length, segment_length))
    correct = total = read = 0

    def count(tokens: int) -> None:
        nonlocal read
        read += tokens
        if progress is not None:
            progress(read, sequences * length)

    with in_eval_mode(model):
        for first in range(0, sequences, rows):
            drawn = [task.sample(1, generator) for _ in range(min(rows, sequences - first))]
            batch = RecallBatch(
                torch.cat([sequence.input_ids for sequence in drawn]),
                torch.cat([sequence.labels for sequence in drawn]),
            ).to(device)
            right, asked = _count_correct(model, batch, segment_length, count)
            correct, total = correct + right, total + asked
    if total == 0:
        raise ValueError(f"{type(task).__name__} asks nothing in {length} tokens, so there is no accuracy.")
    return correct / total


def _count_correct(
    model: nn.Module, batch: RecallBatch, segment_length: int, count: Callable[[int], None]
) -> tuple[int, int]:
    """(correct, total) of the answers in a batch; `count` is told of the tokens after each forward call."""
    rows, positions = answer_positions(batch.labels)  # [N] each
    answers, columns = batch.labels[rows, positions], positions - 1  # the logits before an answer predict it
    length = batch.input_ids.shape[1]
    correct = 0

    def inside(start: int) -> Tensor:
        return (columns >= start) & (columns < start + segment_length)

    def kept(start: int) -> Tensor:
        return columns[inside(start)].unique()  # sorted; [K], shared by all rows

    for start, output in read_in_segments(
        model,
        batch.input_ids,
        segment_length,
        use_cache=length > segment_length,
        more=lambda start, end: {"logits_to_keep": kept(start) - start},
    ):
        predicted = output.logits.argmax(dim=-1)  # [B, K]
        asked = inside(start)
        found = predicted[rows[asked], torch.searchsorted(kept(start), columns[asked])]
        correct += int((found == answers[asked]).sum())
        count(len(batch.input_ids) * min(segment_length, length - start))
    return correct, rows.numel()
