"""Every process holds a part of every sequence; see `echo_ska.parallel` and docs/context-parallel.md."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from echo_ska.models import EchoForCausalLM
from echo_ska.parallel import ContextParallel
from echo_ska.parallel.context import DisagreementError
from echo_ska.training.checkpoint import Checkpoint, restore
from echo_ska.training.engine import Engine
from echo_ska.training.processes import shared


class ContextEngine(Engine):
    """See `Engine`: weights and moments are whole in every process, sequences are cut.

    Each process draws whole batches, of which it computes on its part; layers exchange what came before. Gradients are
    of its part's share in the loss, and are summed once a step.
    """

    reads_alone = False

    def prepare(self, checkpoint: Checkpoint | None) -> None:
        """See `Engine`. Raises ValueError for a model that cannot be split."""
        if not isinstance(self.model, EchoForCausalLM):
            raise shared(
                ValueError(
                    "strategy context splits the sequences of an EchoForCausalLM, not of "
                    f"{type(self.model).__name__}: use ddp."
                )
            )
        self.model.to(self.device)
        self.network = self.model
        self.optimizer = self.build_optimizer()
        if checkpoint is not None:
            self.processes.together(lambda: restore(checkpoint, self.model, self.optimizer))
        with _raised_by_all(ValueError):
            self.parallel = ContextParallel(self.model)

    def own(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `Engine`: this process's part, with `shift_labels` for `labels`."""
        with _raised_by_all(ValueError):
            return self.parallel.split(batch)

    def call(self, **arguments: Any) -> Any:
        """See `Engine`; the loss is that of all parts, in every process."""
        with _raised_by_all(DisagreementError):
            return self.parallel(**arguments)

    def piece(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """See `Engine`: gradients are summed when they are clipped."""
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        """See `Engine`."""
        loss.backward()

    def clip_gradients(self) -> Tensor:
        """See `Engine`."""
        self.parallel.reduce_gradients()
        return nn.utils.clip_grad_norm_(self.network.parameters(), self.config.gradient_clip or math.inf)

    @contextlib.contextmanager
    def whole_model(self) -> Iterator[nn.Module]:
        """See `Engine`: the model as it reads whole sequences."""
        with self.parallel.whole_sequences():
            yield self.model

    def close(self) -> None:
        """See `Engine`."""
        self.parallel.close()


@contextlib.contextmanager
def _raised_by_all(kind: type[Exception]) -> Iterator[None]:
    """Errors of that kind come from what is the same in all processes, which all raise them: the first tells."""
    try:
        yield
    except kind as error:
        shared(error)
        raise
