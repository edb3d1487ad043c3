"""How the tokens of a call are cut: groups that read the same statistics, and the blocks a program works on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from echo_ska.ops.triton.call import MAX_TOKENS, padded

FIELDS = 5  # of one block: first token, tokens, sequence, group, whether it opens its sequence


@dataclasses.dataclass(frozen=True)
class Cuts:
    """Blocks of at most `block_size` tokens that lie in one group each; groups that lie in one sequence each.

    What a group is depends on the reading: a block (exact), the tokens between two refreshes, a sequence (non-causal).

    Attributes:
        block_size: tokens a block has room for.
        blocks: int64, [blocks, FIELDS], on the device of the tokens.
        first_block: the first block of each group, and the number of blocks at the end, [groups + 1], on the CPU.
        sequence: of each group, [groups], on the CPU.
        starts, lengths: first flat token and tokens of each sequence, [N], on the CPU.
        complete: whether each sequence has tokens and ends where a group does, [N], on the CPU.
        begun: whether each group goes on with one that an earlier call began, [groups], on the CPU.
    """

    block_size: int
    blocks: Tensor
    first_block: Tensor
    sequence: Tensor
    starts: Tensor
    lengths: Tensor
    complete: Tensor
    begun: Tensor

    @classmethod
    def of(
        cls, bounds: list[int], block_size: int, group_size: int | None, offsets: list[int], device: torch.device
    ) -> Cuts:
        """Cut sequences that hold the flat tokens bounds[n] to bounds[n + 1] - 1.

        Args:
            bounds: [N + 1].
            block_size: tokens a block, at most.
            group_size: tokens a group; None for one group a sequence.
            offsets: tokens that each sequence's first group already had in earlier calls, [N].
            device: of the tokens.
        """
        edges = torch.tensor(bounds, device="cpu")
        starts, lengths = edges[:-1], edges.diff()
        offset = torch.tensor(offsets, device="cpu")
        longest = max(int(lengths.max()), 1)
        begin, count, sequence, part = _cut(starts, lengths, group_size or longest, offset)
        block_size = min(block_size, group_size or longest, MAX_TOKENS)
        block_begin, block_count, group, _ = _cut(begin, count, block_size, torch.zeros_like(begin))
        opens = block_begin == starts[sequence[group]]
        blocks = torch.stack([block_begin, block_count, sequence[group], group, opens.long()], dim=1)
        per_group = torch.bincount(group, minlength=len(begin))
        first_block = torch.cat([per_group.new_zeros(1), per_group.cumsum(0)])
        complete = (lengths > 0) & ((offset + lengths) % (group_size or longest) == 0)
        begun = (part == 0) & (offset[sequence] > 0)
        return cls(block_size, blocks.to(device), first_block, sequence, starts, lengths, complete, begun)

    @property
    def tile(self) -> int:
        """The side of the tile that holds a block."""
        return padded(self.block_size)

    @property
    def num_groups(self) -> int:
        return len(self.sequence)

    def segments(self, most_blocks: int) -> Iterator[Segment]:
        """Runs of whole groups of about `most_blocks` blocks each, in order."""
        begin = 0
        while begin < self.num_groups:
            limit = self.first_block[begin] + most_blocks
            end = int(torch.searchsorted(self.first_block, limit, right=True)) - 1
            end = min(max(end, begin + 1), self.num_groups)
            yield Segment(self, begin, end)
            begin = end


@dataclasses.dataclass(frozen=True)
class Segment:
    """The groups from `begin` to `end` - 1: what is worked on at once, so that the workspace stays small."""

    cuts: Cuts
    begin: int
    end: int

    @property
    def first_block(self) -> int:
        return int(self.cuts.first_block[self.begin])

    @property
    def num_blocks(self) -> int:
        return int(self.cuts.first_block[self.end]) - self.first_block

    @property
    def num_groups(self) -> int:
        return self.end - self.begin

    @property
    def first_sequence(self) -> int:
        return int(self.cuts.sequence[self.begin])

    @property
    def goes_on(self) -> bool:
        """Whether it begins in the middle of a sequence."""
        return self.begin > 0 and int(self.cuts.sequence[self.begin - 1]) == self.first_sequence

    @property
    def sequences(self) -> Tensor:
        """The sequence of each group, [groups], on the CPU."""
        return self.cuts.sequence[self.begin : self.end]

    def begun(self) -> tuple[Tensor, Tensor]:
        """The groups that an earlier call began (relative to this segment), and their sequences."""
        groups = self.cuts.begun[self.begin : self.end].nonzero().squeeze(1)
        return groups, self.sequences[groups]

    def unfinished(self) -> tuple[Tensor, Tensor]:
        """The last groups (relative) of sequences that end inside a group, and those sequences."""
        following = torch.cat([self.cuts.sequence[1:], self.cuts.sequence.new_tensor([-1])])[self.begin : self.end]
        last = (following != self.sequences) & ~self.cuts.complete[self.sequences]
        groups = last.nonzero().squeeze(1)
        return groups, self.sequences[groups]

    def group_edges(self) -> Tensor:
        """The first block of each group, and the end, relative to this segment, [groups + 1], on the CPU."""
        return self.cuts.first_block[self.begin : self.end + 1] - self.first_block

    def sequence_edges(self, *, of_blocks: bool) -> Tensor:
        """The first block (or group) of each sequence from `first_sequence` on, and the end, relative, on the CPU."""
        groups = torch.bincount(self.sequences - self.first_sequence)
        edges = torch.cat([groups.new_zeros(1), groups.cumsum(0)])
        return self.group_edges()[edges] if of_blocks else edges


def _cut(starts: Tensor, lengths: Tensor, size: int, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pieces of `size` tokens; the first of each run has only the size - offset that an earlier call left.

    Returns:
        First token, tokens, run, and number within the run, of every piece.
    """
    counts = torch.where(lengths > 0, (offsets + lengths + size - 1) // size, 0)
    run = torch.repeat_interleave(counts)
    part = torch.arange(len(run), device="cpu") - (counts.cumsum(0) - counts)[run]
    origin = starts[run] - offsets[run] + part * size
    begin = torch.maximum(origin, starts[run])
    end = torch.minimum(origin + size, (starts + lengths)[run])
    return begin, end - begin, run, part
