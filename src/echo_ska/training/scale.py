"""How a training is carried out: on how many processes, in how many pieces, with what guard. Not what is learnt."""

from __future__ import annotations

import math
from dataclasses import dataclass

STRATEGIES = ("auto", "ddp", "fsdp", "deepspeed", "context")

SKIP_LOGITS_FROM = 16_384
"""Token ids from which on the loss is computed without logits, if nothing else is said.

Of echo-1m with 8 x 256 tokens on one CPU thread, a step without logits took 1.00 times as long at 256 ids, 0.94 at
8,192, 0.92 at this number and 0.91 at 32,000; logits of 134 MB (here) and their gradient are never there.
"""

SKIP_LOGITS_AT = 0.5
"""Of smaller vocabularies too, where at most this share of a batch's tokens is scored: the others cost nothing then."""


@dataclass(frozen=True)
class ScaleConfig:
    """Settings of `train` that leave the function computed as it is, up to rounding.

    A run may therefore be resumed with others, and records do not hold them. (A model with dropout draws other
    numbers for other parts of a batch.)

    Attributes:
        strategy: what several processes, started by `torchrun` or `accelerate launch`, share. "ddp": the batch
            (whole weights and moments in each process); "fsdp": weights, gradients and moments too, sharded by
            PyTorch's `fully_shard` (FSDP2); "deepspeed": moments, by ZeRO-1; "context": every sequence, cut into as
            many parts (weights and moments as with "ddp"; models of SKA and Mamba-2 layers alone); "auto": "ddp". One
            process takes "auto" or "ddp" and shares nothing.
        accumulate: pieces in which a process takes its part of a batch, one after the other: memory for one
            piece, gradients of all.
        checkpoint_activations: keep each block's input alone for the backward pass and compute the block anew.
        compile: compile the model by `torch.compile`; not with "context", whose layers exchange.
        skip_logits: compute the loss without logits (`EchoForCausalLM(skip_logits=True)`); None does so for models that
            can, if they know at least `SKIP_LOGITS_FROM` token ids, or where at most `SKIP_LOGITS_AT` of a batch's
            tokens are scored and the model is not compiled.
        spike_factor: stop at a loss above so many times the mean of the `spike_window` losses before it; None
            never does. A loss or gradient that is not finite always stops.
        spike_window: steps in that mean; nothing is judged before there are so many.

    Raises:
        ValueError: for a value out of range.
    """

    strategy: str = "auto"
    accumulate: int = 1
    checkpoint_activations: bool = False
    compile: bool = False
    skip_logits: bool | None = None
    spike_factor: float | None = None
    spike_window: int = 100

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, got {self.strategy!r}.")
        if self.strategy == "context" and self.compile:
            raise ValueError("strategy context cannot compile a model, whose layers exchange: leave one of them out.")
        for name in ("accumulate", "spike_window"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")
        if self.spike_factor is not None and not (1 < self.spike_factor < math.inf):
            raise ValueError(f"spike_factor must be a number above 1, got {self.spike_factor}.")
