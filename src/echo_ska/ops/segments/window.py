"""Where the tokens of a segment lie."""

from __future__ import annotations

import torch
from torch import Tensor

from echo_ska.ops.segments.plan import Block, Segment, SegmentPlan


class Window:
    """The tokens of one segment, taken from and put back into tensors [B, T, H, ...].

    Attributes:
        rows, slots, chunks, chunk_size, is_lead: as in `Segment`.
        members: the rows of the plan.
        is_first, is_last: of the segments of its block.
        at_once: as in `Cut`.
        last_slot: where each row's last token lies, [rows], for rows that go on after the segment; None: at the end.
    """

    def __init__(self, plan: SegmentPlan, block: Block, segment: Segment, device: torch.device) -> None:
        self.rows, self.slots = segment.rows, segment.slots
        self.chunks, self.chunk_size, self.is_lead = segment.chunks, segment.chunk_size, segment.is_lead
        self.at_once = plan.at_once
        self.is_first, self.is_last = segment is block.segments[0], segment is block.segments[-1]
        first = block.first_row
        self.members = slice(first, first + self.rows)
        self.index: tuple[Tensor, Tensor] | None = None
        self.valid: Tensor | None = None
        self.last_slot: Tensor | None = None
        if plan.is_dense:
            self.place = (self.members, slice(segment.begin, segment.begin + self.slots))
            return
        members = self.members
        leads = torch.tensor(plan.leads[members], device="cpu")
        begin = torch.zeros_like(leads) if segment.is_lead else leads + segment.begin
        lengths = torch.tensor(plan.lengths[members], device="cpu")
        end = leads if segment.is_lead else lengths
        count = (torch.minimum(end, lengths) - begin).clamp(max=self.slots)
        local = torch.arange(self.slots, device="cpu")
        batch_row, start = torch.tensor(plan.starts[members], device="cpu").unbind(1)
        time = (start + begin)[:, None] + torch.minimum(local, count[:, None].clamp(min=1) - 1)  # [rows, slots]
        self.index = (batch_row[:, None].expand_as(time).to(device), time.to(device))
        if int(count.min()) < self.slots:
            self.valid = (local < count[:, None]).to(device)
        if segment.is_lead:
            self.last_slot = (count - 1).to(device)
            self.all_rows = torch.arange(self.rows, device=device)

    def load(self, tokens: Tensor, out: Tensor) -> Tensor:
        """[B, T, H, ...] -> `out`, [rows, H, slots, ...]; empty slots repeat a token of their row."""
        if self.index is None:
            return out.copy_(tokens[self.place].transpose(1, 2))
        return out.copy_(tokens[self.index].transpose(1, 2))

    def clear_empty(self, slots: Tensor) -> Tensor:
        """Zero in place what empty slots of [rows, H, slots, ...] hold."""
        if self.valid is not None:
            slots.mul_(self.valid.reshape(self.rows, 1, self.slots, *[1] * (slots.dim() - 3)))
        return slots

    def store(self, slots: Tensor, tokens: Tensor) -> None:
        """[rows, H, slots, ...] -> its place in `tokens`, [B, T, H, ...]."""
        values = slots.transpose(1, 2).to(tokens.dtype)
        if self.index is None:
            tokens[self.place] = values
        elif self.valid is None:
            tokens[self.index] = values
        else:
            tokens[self.index[0][self.valid], self.index[1][self.valid]] = values[self.valid]


def windows(plan: SegmentPlan, block: Block, device: torch.device) -> list[Window]:
    """The segments of a block, in order."""
    return [Window(plan, block, segment, device) for segment in block.segments]
