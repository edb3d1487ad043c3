"""One layer's exchange with the processes that hold the other parts of its sequences."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from echo_ska.nn.parts import Summary
from echo_ska.parallel.line import Line
from echo_ska.parallel.scan import Restarting, exclusive_scan


class LayerExchange:
    """What a mixer asks (`echo_ska.nn.parts.PartExchange`): a message to the neighbour, and a scan.

    Args:
        line: the processes, each with the part after its neighbour's.
        name: the layer's, in `Traffic`.
    """

    def __init__(self, line: Line, name: str) -> None:
        self.line, self.name = line, name

    def inputs_before(self, last: Tensor, start: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
        """See `PartExchange.inputs_before`."""
        if cu_seqlens is not None and len(cu_seqlens) > 2:
            # What stands before the last sequence of the part is not of that sequence.
            missing = last.shape[1] - int(cu_seqlens[-1] - cu_seqlens[-2])
            last = F.pad(last[:, max(missing, 0) :], (0, 0, max(missing, 0), 0))
        before = _first_of(self.line.shift(last, 1, self.name), cu_seqlens)
        if start is None or self.line.rank > 0:
            return before
        # Added to the zeros that came from nobody: a shift whose result is not used has no backward pass, for which
        # the neighbour would wait.
        return before + start.to(before.dtype)

    def summary_before(self, own: Summary, cu_seqlens: Tensor | None) -> Summary:
        """See `PartExchange.summary_before`."""
        if cu_seqlens is None:
            return exclusive_scan(self.line, own, self.name)
        device = next(iter(own.tensors().values())).device
        restarts = torch.full((1,), float(len(cu_seqlens) > 2), device=device)
        before = exclusive_scan(self.line, Restarting(own, restarts), self.name).record
        return before.map(lambda tensor: _first_of(tensor, cu_seqlens))


def _first_of(row: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """`row` for the sequence that goes on from the part before, zeros for those that begin in this one."""
    if cu_seqlens is None or len(cu_seqlens) == 2:
        return row
    return torch.cat([row, row.new_zeros(len(cu_seqlens) - 2, *row.shape[1:])])
