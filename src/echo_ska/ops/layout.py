"""Tokens laid out in chunks of equal length, none of which crosses the boundary of a sequence."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class ChunkLayout:
    """How the tokens [B, T] of a call are cut into chunks [C, S]; unused slots hold zeros, which write nothing.

    A dense batch is padded at its end and viewed; packed sequences, or rows whose chunks begin in the middle
    (chunk-causal reading continued at an odd position), are gathered.

    Attributes:
        shape: (B, T) of the tokens.
        chunk_size: S.
        starts, lengths: the first flat token (b * T + t) and the number of tokens of each sequence.
        offsets: the slot of each sequence's first token in its first chunk.
        chunks: chunks of each sequence, in order; they add up to C.
        index: the flat token in every slot, B * T for an unused one, [C * S]; None for the dense view.
        slot: the slot of every token, [B * T]; None for the dense view.
    """

    shape: tuple[int, int]
    chunk_size: int
    starts: list[int]
    lengths: list[int]
    offsets: list[int]
    chunks: list[int]
    index: Tensor | None = None
    slot: Tensor | None = None

    @classmethod
    def dense(cls, batch: int, time: int, chunk_size: int) -> ChunkLayout:
        """Every row cut from its first token on."""
        starts = [row * time for row in range(batch)]
        return cls((batch, time), chunk_size, starts, [time] * batch, [0] * batch, [-(-time // chunk_size)] * batch)

    @classmethod
    def ragged(cls, batch: int, time: int, chunk_size: int, bounds: list[int], offsets: list[int]) -> ChunkLayout:
        """Sequence n holds the flat tokens bounds[n] to bounds[n + 1] - 1, from slot offsets[n] of its first chunk."""
        starts = bounds[:-1]
        lengths = [end - start for start, end in zip(starts, bounds[1:], strict=True)]
        chunks = [
            -(-(offset + length) // chunk_size) if length else 0
            for offset, length in zip(offsets, lengths, strict=True)
        ]
        index = torch.full((sum(chunks) * chunk_size,), batch * time, dtype=torch.int64)
        slot = torch.empty(batch * time, dtype=torch.int64)
        first_slot = 0
        for start, length, offset, count in zip(starts, lengths, offsets, chunks, strict=True):
            begin = first_slot + offset
            index[begin : begin + length] = torch.arange(start, start + length)
            slot[start : start + length] = torch.arange(begin, begin + length)
            first_slot += count * chunk_size
        return cls((batch, time), chunk_size, starts, lengths, offsets, chunks, index, slot)

    def to_chunks(self, tokens: Tensor) -> Tensor:
        """[B, T, H, ...] -> [C, H, S, ...]."""
        batch, time = self.shape
        rest = tokens.shape[2:]
        if self.index is None:
            missing = self.chunks[0] * self.chunk_size - time
            padded = F.pad(tokens, [0, 0] * len(rest) + [0, missing]) if missing else tokens  # [B, N * S, H, ...]
        else:
            flat = tokens.reshape(batch * time, *rest)
            padded = torch.cat([flat, flat.new_zeros(1, *rest)])[self.index.to(flat.device)]
        return padded.reshape(sum(self.chunks), self.chunk_size, *rest).transpose(1, 2)

    def from_chunks(self, chunks: Tensor) -> Tensor:
        """[C, H, S, ...] -> [B, T, H, ...]."""
        batch, time = self.shape
        slots = chunks.transpose(1, 2)  # [C, S, H, ...]
        rest = slots.shape[2:]
        if self.slot is None:
            return slots.reshape(batch, -1, *rest)[:, :time]
        return slots.reshape(-1, *rest)[self.slot.to(chunks.device)].reshape(batch, time, *rest)

    def prefix_sums(self, initial: Tensor, terms: Tensor) -> tuple[Tensor, Tensor]:
        """The sum before each chunk, and after the last one of each sequence.

        Args:
            initial: what each sequence starts from, [N, ...].
            terms: one term a chunk, [C, ...].

        Returns:
            [C, ...] and [N, ...].
        """
        if self.index is None:
            per_sequence = terms.reshape(len(self.chunks), -1, *terms.shape[1:])
            sums = torch.cat([initial.unsqueeze(1), per_sequence], dim=1).cumsum(dim=1)
            return sums[:, :-1].flatten(0, 1), sums[:, -1]
        sequences = terms.split(self.chunks)
        running = [torch.cat([initial[n : n + 1], part]).cumsum(dim=0) for n, part in enumerate(sequences)]
        return torch.cat([sums[:-1] for sums in running]), torch.stack([sums[-1] for sums in running])

    @functools.cached_property
    def sequence_of_chunk(self) -> Tensor:
        """The sequence that each chunk belongs to, [C]."""
        return torch.repeat_interleave(torch.arange(len(self.chunks)), torch.tensor(self.chunks))

    @functools.cached_property
    def first_chunks(self) -> list[int]:
        """The index of each sequence's first chunk (where it has any)."""
        return list(itertools.accumulate(self.chunks[:-1], initial=0))
