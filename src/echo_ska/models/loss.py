"""The loss of a language-model head without its logits, and the output that goes with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from echo_ska.nn.cross_entropy import LinearCrossEntropy, linear_cross_entropy


@dataclass
class EchoCausalLMOutput(CausalLMOutputWithPast):
    """`CausalLMOutputWithPast`, and what a loss without logits has counted.

    Attributes:
        correct: int64 scalar, scored tokens whose logit was the largest; None where there are logits to count in.
        scored: int64 scalar, tokens with a label; None likewise.
    """

    correct: Tensor | None = None
    scored: Tensor | None = None


def is_plain_head(head: nn.Module) -> bool:
    """Whether a loss can be computed from the head's weight alone: nothing is added, hooked on or computed anew."""
    return (
        type(head) is nn.Linear
        and head.bias is None
        and isinstance(head.weight, nn.Parameter)
        and not (head._forward_hooks or head._forward_pre_hooks)
    )


def loss_without_logits(
    head: nn.Module,
    hidden_states: Tensor,
    labels: Tensor,
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = -100,
    shift_labels: Tensor | None = None,
    **kwargs: Any,
) -> LinearCrossEntropy:
    """What Hugging Face's `ForCausalLMLoss` makes of the head's logits, and counts; it takes the same keywords.

    Args:
        head: the linear layer that logits come from.
        hidden_states: [B, T, d], what it would be given.
        labels: [B, T] int64, not shifted.
        num_items_in_batch, ignore_index: see `linear_cross_entropy`.
        shift_labels: [B, T] int64, labels that are shifted already, instead.
        kwargs: passed over, as that loss does.

    Raises:
        ValueError: the head is no plain linear layer (an adapter, a quantised or a pruned one, say); see
            `is_plain_head`.
    """
    if not is_plain_head(head):
        raise ValueError(
            "skip_logits computes the loss from the weight of a linear head without a bias, hooks or a weight that is "
            f"computed, not from this {type(head).__name__}: leave it out"
        )
    if shift_labels is None:
        shift_labels = F.pad(labels[:, 1:], (0, 1), value=ignore_index)
    return linear_cross_entropy(
        hidden_states,
        head.weight,
        shift_labels.to(hidden_states.device),
        ignore_index=ignore_index,
        num_items_in_batch=num_items_in_batch,
    )
