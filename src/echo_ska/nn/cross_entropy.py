"""Cross-entropy of a linear head without the logits: chunk by chunk, each forgotten once its gradient is taken."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from echo_ska.ops.derivatives import Gradients, first_derivatives

CHUNK_LOGITS = 1 << 24
"""Logits in memory at once: 64 MiB in float32. A chunk has this many over V tokens, and at least one."""


class LinearCrossEntropy(NamedTuple):
    """What `linear_cross_entropy` returns.

    Attributes:
        loss: a scalar, nats, float32 or float64.
        correct: how many scored tokens have the largest logit, int64 scalar.
        scored: how many tokens have a label, int64 scalar.
    """

    loss: Tensor
    correct: Tensor
    scored: Tensor


@torch.compiler.disable
def linear_cross_entropy(
    hidden_states: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    ignore_index: int = -100,
    num_items_in_batch: Tensor | int | None = None,
    chunk_size: int | None = None,
) -> LinearCrossEntropy:
    """`F.cross_entropy(hidden_states @ weight.T, labels)`, of which no more than a chunk's logits are ever in memory.

    Gradients are taken in the forward pass, while a chunk's logits are there: the backward pass only scales them. What
    is kept for it are the gradients themselves, in the shapes of `hidden_states` and `weight`. Of tokens that are not
    scored nothing is computed, so that a prompt or a filler costs the head nothing; which they are is asked of the
    device once. Products run in autocast's dtype where that is on; logits and the sum of the weight's gradient are
    float32 at least. It has no second derivative: asking for one is an error. `torch.compile` leaves it as it is.

    Args:
        hidden_states: [..., d].
        weight: [V, d], of the head, which may also be the embedding's.
        labels: [...] int64 in [0, V), or `ignore_index`. Aligned with `hidden_states`: nothing is shifted here.
        ignore_index: the label of tokens that are not scored.
        num_items_in_batch: what the sum is divided by, as Hugging Face's Trainer has it: the scored tokens of all the
            batches whose gradients are accumulated. None = the scored tokens of this call (then, as with
            `F.cross_entropy`, the loss is nan if there are none; gradients are 0).
        chunk_size: scored tokens of a chunk; None = `CHUNK_LOGITS` / V.

    Returns:
        The loss, and the counts of right and of scored tokens.

    Raises:
        ValueError: the shapes do not fit together.

    The idea is Liger Kernel's (Hsu et al., arXiv 2410.10989), here in PyTorch alone. Recent PyTorch has a function of
    this name too (`torch.nn.functional`), with which a test compares this one; that one counts no answers, and the
    PyTorch that Echo still supports lacks it.
    """
    if hidden_states.shape[:-1] != labels.shape or hidden_states.shape[-1:] != weight.shape[1:]:
        raise ValueError(
            f"hidden_states {list(hidden_states.shape)}, weight {list(weight.shape)} and labels {list(labels.shape)} "
            "do not fit: they must be [..., d], [V, d] and [...]"
        )
    if chunk_size is None:
        chunk_size = max(1, CHUNK_LOGITS // len(weight))
    elif chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    device = hidden_states.device.type
    dtype = torch.promote_types(hidden_states.dtype, weight.dtype)
    if torch.is_autocast_enabled(device) and dtype != torch.float64:  # which autocast leaves alone
        dtype = torch.get_autocast_dtype(device)
    if isinstance(num_items_in_batch, Tensor):
        num_items_in_batch = num_items_in_batch.to(hidden_states.device)
    labels = labels.flatten()
    rows = (labels != ignore_index).nonzero().squeeze(-1)
    scored = labels.new_tensor(len(rows))
    total, correct = _SummedLoss.apply(
        hidden_states.flatten(0, -2),
        weight,
        labels,
        rows,
        max(1, len(rows)) if num_items_in_batch is None else num_items_in_batch,
        chunk_size,
        dtype,
        torch.is_grad_enabled(),
    )
    if num_items_in_batch is None and not len(rows):
        total = total + torch.nan  # the mean of nothing
    return LinearCrossEntropy(total, correct, scored)


class _SummedLoss(torch.autograd.Function):
    """(sum of the losses over `divisor`, right answers); the first is differentiable."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_states: Tensor,
        weight: Tensor,
        labels: Tensor,
        rows: Tensor,
        divisor: Tensor | int,
        chunk_size: int,
        dtype: torch.dtype,
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        of_hidden = torch.zeros_like(hidden_states) if with_gradient and ctx.needs_input_grad[0] else None
        of_weight = None
        if with_gradient and ctx.needs_input_grad[1]:
            of_weight = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
        with torch.autocast(hidden_states.device.type, enabled=False):
            head = weight.to(dtype)
            total = torch.zeros((), device=weight.device, dtype=torch.promote_types(dtype, torch.float32))
            correct = torch.zeros((), device=weight.device, dtype=torch.int64)
            for begin in range(0, len(rows), chunk_size):
                span = slice(begin, begin + chunk_size)
                chunk = rows[span] if len(rows) < len(labels) else span  # which takes no copy
                states, target = hidden_states[chunk].to(dtype), labels[chunk].unsqueeze(-1)
                logits = (states @ head.T).to(total.dtype)  # [S, V]
                correct += (logits.argmax(-1, keepdim=True) == target).sum()
                normaliser = logits.logsumexp(-1, keepdim=True)
                total += (normaliser - logits.gather(-1, target)).sum()
                if of_hidden is None and of_weight is None:
                    continue
                # Of the sum, without the divisor: what float16 holds of it then does not depend on the batch.
                of_logits = logits.sub_(normaliser).exp_()  # softmax, in the logits' own memory
                of_logits = of_logits.scatter_add_(-1, target, of_logits.new_full(target.shape, -1.0)).to(dtype)
                if of_hidden is not None:
                    of_hidden[chunk] = (of_logits @ head).to(of_hidden.dtype)
                if of_weight is not None:
                    of_weight += of_logits.T @ states
        ctx.save_for_backward(weight, hidden_states, of_hidden, of_weight)
        ctx.divisor, ctx.weight_dtype = divisor, weight.dtype
        ctx.mark_non_differentiable(correct)
        return total / divisor, correct

    @staticmethod
    @functools.partial(
        first_derivatives,
        refusal="linear_cross_entropy has first derivatives only: for second ones (create_graph=True) compute the "
        "logits, and call torch.nn.functional.cross_entropy (skip_logits=False for a model)",
    )
    def backward(ctx: Any, saved: Gradients, gradients: Gradients) -> Gradients:
        _, _, of_hidden, of_weight = saved
        assert gradients[0] is not None
        factor = gradients[0] / ctx.divisor
        if of_hidden is not None:
            of_hidden = of_hidden * factor
        if of_weight is not None:
            of_weight = (of_weight * factor).to(ctx.weight_dtype)
        return of_hidden, of_weight, None, None, None, None, None, None
