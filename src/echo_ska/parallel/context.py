"""Training a model on sequences that several processes hold in parts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from echo_ska.models import EchoForCausalLM
from echo_ska.nn import SequenceMixer
from echo_ska.parallel.exchange import LayerExchange
from echo_ska.parallel.line import Line
from echo_ska.parallel.split import split_sequence
from echo_ska.parallel.traffic import Traffic

BUCKET_NUMBERS = 1 << 23
"""Numbers of the gradients that are summed over the processes at once."""


class DisagreementError(ValueError):
    """The processes' parts do not fit together: what all of them found, from the same figures, and raise."""


class ContextParallel:
    """A model whose sequences are split over the processes of a group: process p holds the p-th part of each.

    Every layer sends its neighbour the last inputs of its short convolution, and takes part in one exclusive scan of
    what its part adds to the state: messages whose size does not depend on the length. All else stays in its process.
    Results and gradients are those of one process that reads the whole sequences.

    It belongs to the model until `close`, so that layers that are computed again in a backward pass (gradient
    checkpointing) exchange again; `with ContextParallel(model) as parallel:` closes it. Every process makes one, with
    the same weights, and calls the same methods in the same order.

    Args:
        model: of which every mixer has a summary (`SequenceMixer.has_summary`): SKA and Mamba-2.
        group: of `torch.distributed`; None for all processes.

    Attributes:
        line: this process's place: `line.rank` of `line.world`.
        traffic: what this process sends.

    Raises:
        ValueError: there is no process group, a layer cannot be split, the model is in parts already, or the processes'
            models differ.
    """

    def __init__(self, model: EchoForCausalLM, group: dist.ProcessGroup | None = None) -> None:
        self.model, self.traffic = model, Traffic()
        self.line = Line(group, self.traffic)
        self.mixers = mixers_with_summaries(model)
        self.device = next(model.parameters()).device
        self._require_equal_weights()
        for name, mixer in self.mixers.items():
            mixer.exchange = LayerExchange(self.line, name)
        self._guard = model.model.register_forward_pre_hook(self._refuse_padding, with_kwargs=True)

    def close(self) -> None:
        """Give the model back: from now on it reads whole sequences. Wait with it until the backward pass is done."""
        for mixer in self.mixers.values():
            mixer.exchange = None
        self._guard.remove()

    def whole_sequences(self) -> AbstractContextManager[None]:
        """While it lasts, the model reads whole sequences, in whichever processes call it."""
        return whole_sequences(self.mixers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def multiple_of(self) -> int:
        """Parts begin at multiples of this many tokens of their sequence."""
        return self.model.config.refresh_interval or 1

    @property
    def least_tokens(self) -> int:
        """A part must have so many: its neighbour's convolutions look back no further than to them."""
        return max(2, *(mixer.history for mixer in self.mixers.values()))

    def split(self, batch: dict[str, Tensor], bounds: list[int] | None = None) -> dict[str, Tensor]:
        """This process's part of a batch that every process has; see `split_sequence`."""
        line, grain, least = self.line, self.multiple_of, self.least_tokens
        return split_sequence(batch, line.rank, line.world, multiple_of=grain, least=least, bounds=bounds)

    def __call__(
        self,
        input_ids: Tensor,
        shift_labels: Tensor | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        **more: Any,
    ) -> CausalLMOutputWithPast:
        """Run the model on this process's part.

        Args:
            input_ids: [B, part] int64; the same B in every process, parts of any lengths.
            shift_labels: [B, part], the label of each NEXT token (`split_sequence`), -100 where none is scored.
            cu_seqlens: [N + 1] boundaries of the part's packed sequences, in every process or in none; sequence 0 is
                the one that the part before ended in, without a token if another begins here. The last has a token.
            more: further arguments of the model, such as `output_hidden_states`; not a cache and not a mask.

        Returns:
            What the model returns for the part. `loss` is the mean over the scored tokens of all parts, the same number
            in every process; its gradient is that of this part's share, so that SUMS of gradients over processes
            (`reduce_gradients`) are those of the whole.

        Raises:
            DisagreementError: parts that do not fit together, a ValueError; in every process.
        """
        scored = -1 if shift_labels is None else int((shift_labels != -100).sum())
        total = self._agree(input_ids, scored, cu_seqlens)
        labels = {}
        if shift_labels is not None:
            shift_labels = shift_labels.contiguous()
            labels = {"labels": shift_labels, "shift_labels": shift_labels, "num_items_in_batch": total}
        output = self.model(
            input_ids=input_ids, cu_seqlens=cu_seqlens, use_cache=False, return_dict=True, **labels, **more
        )
        if output.loss is not None:
            whole = self.line.sum_(output.loss.detach().clone(), "loss")
            output.loss = whole + (output.loss - output.loss.detach())  # the value is `whole`, to the bit
        return output

    @torch.no_grad()
    def reduce_gradients(self) -> None:
        """Replace every parameter's gradient by its sum over the processes: the gradient of the whole loss.

        Call it after `backward`, before gradients are clipped or an optimiser steps. A parameter without a gradient
        gets one, of zeros if it has none in any process.
        """
        for bucket in _buckets([parameter for parameter in self.model.parameters() if parameter.requires_grad]):
            for parameter in bucket:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            gradients = [parameter.grad for parameter in bucket if parameter.grad is not None]
            summed = self.line.sum_(torch.cat([gradient.flatten() for gradient in gradients]), "gradients")
            for gradient, piece in zip(gradients, summed.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(piece.view_as(gradient))

    @torch.no_grad()
    def _require_equal_weights(self) -> None:
        """Two sums a process are enough to find weights that were drawn from another seed or read from elsewhere."""
        own = [0.0, 0.0]
        for parameter in self.model.parameters():
            own[0] += float(parameter.sum(dtype=torch.float64))
            own[1] += float(parameter.double().square().sum())
        sums = torch.tensor(self.line.gather(own, self.device, torch.float64), dtype=torch.float64)
        if not bool(((sums - sums[0]).abs() <= 1e-9 * (1 + sums[:, 1:])).all()):
            raise ValueError(
                "the processes' models have different weights, or some that are not finite: build them from one seed "
                "or one file"
            )

    def _agree(self, input_ids: Tensor, scored: int, cu_seqlens: Tensor | None) -> int:
        """Hold the parts of all processes to what they have to have in common; returns the scored tokens of all."""
        sequences, first, last = 0, input_ids.shape[1], input_ids.shape[1]
        if cu_seqlens is not None:
            sequences, first, last = len(cu_seqlens) - 1, int(cu_seqlens[1]), int(cu_seqlens[-1] - cu_seqlens[-2])
        parts = self.line.gather([*input_ids.shape, sequences, first, last, scored], input_ids.device)
        rows, lengths, packings, firsts, lasts, scores = zip(*parts, strict=True)
        if min(lasts) == 0:
            raise DisagreementError(
                "the last sequence of a part must have a token: one that begins where the next part does belongs there "
                f"(cu_seqlens that begin with 0, 0), got last sequences of {list(lasts)} tokens"
            )
        if len(set(rows)) > 1:
            raise DisagreementError(
                f"every process must hold a part of the same sequences, got batches of {list(rows)} rows"
            )
        if min(lengths) < self.least_tokens:
            raise DisagreementError(f"every part must have at least {self.least_tokens} tokens, got {list(lengths)}")
        if len({bool(packing) for packing in packings}) > 1:
            raise DisagreementError("cu_seqlens must be given in every process or in none")
        if len({score < 0 for score in scores}) > 1:
            raise DisagreementError(
                "shift_labels must be given in every process or in none: -100 marks what is not scored"
            )
        position = 0
        for part, following in itertools.pairwise(range(len(parts))):
            position = lasts[part] + (position if packings[part] < 2 else 0)
            goes_on = not packings[following] or firsts[following] > 0
            if goes_on and position % self.multiple_of:
                raise DisagreementError(
                    f"part {following} begins at token {position} of its sequence: with a refresh_interval, parts must "
                    f"begin at multiples of {self.multiple_of} (split_sequence: multiple_of)"
                )
        return sum(scores)

    def _refuse_padding(self, module: nn.Module, positional: Any, named: dict[str, Any]) -> None:
        if all(mixer.exchange is None for mixer in self.mixers.values()):
            return  # whole sequences, which may be padded
        mask = named.get("attention_mask", positional[1] if len(positional) > 1 else None)
        if mask is not None and not bool((mask == 1).all()):
            raise ValueError("a padded batch cannot be split over processes: pack its sequences and give cu_seqlens")


def mixers_with_summaries(model: nn.Module) -> dict[str, SequenceMixer]:
    """The mixers of a model by name.

    Raises:
        ValueError: one of them cannot be split over processes, or is split already.
    """
    mixers = {name: module for name, module in model.named_modules() if isinstance(module, SequenceMixer)}
    if not mixers:
        raise ValueError("the model has no sequence mixer: there is nothing to split")
    for name, mixer in mixers.items():
        if not mixer.has_summary:
            raise ValueError(
                f"{name} ({type(mixer).__name__}) cannot be split over processes: it has no summary of constant size "
                "that adds; use a model of mamba2 and ska layers"
            )
        if mixer.exchange is not None:
            raise ValueError("the model is split over processes already: close() that first")
    return mixers


@contextmanager
def whole_sequences(mixers: dict[str, SequenceMixer]) -> Iterator[None]:
    """While every process reads the same tokens by itself."""
    exchanges = {name: mixer.exchange for name, mixer in mixers.items()}
    for mixer in mixers.values():
        mixer.exchange = None
    try:
        yield
    finally:
        for name, mixer in mixers.items():
            mixer.exchange = exchanges[name]


def _buckets(parameters: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Parameters of one dtype in a row, up to `BUCKET_NUMBERS` at once, or one."""
    bucket: list[nn.Parameter] = []
    for parameter in parameters:
        full = sum(other.numel() for other in bucket) + parameter.numel() > BUCKET_NUMBERS
        if bucket and (full or bucket[0].dtype != parameter.dtype):
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket
