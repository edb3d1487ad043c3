"""Training batches from a corpus: windows of its tokens packed into one row, cut wherever a document begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from echo_ska.corpus.index import TRAINING
from echo_ska.corpus.permutation import permuted
from echo_ska.corpus.stream import TokenStream
from echo_ska.training.data import require_part, step_seed


class PackedTokens:
    """Batches of R windows of T tokens, each a function of (seed, step); a `DataSource`.

    An epoch visits windows that lie side by side, each once, in an order of its own that needs no memory
    (`permuted`), and begins them at an offset of its own, so that over epochs windows end everywhere. Less than two
    windows' worth of tokens is left out of an epoch, at the ends.

    A window holds pieces of documents. The model starts every piece from an empty state, and its first token is not
    scored: nothing was read before it.

    Args:
        directory: of a corpus; see `prepare_corpus`.
        batch_size: windows in a batch R, at least 1.
        length: tokens in a window T, at least 3 (of three tokens in a row, one at least is scored).
        seed: any integer; other seeds give independent batches.
        split: "training" or "held-out".
        vocab_size: ids that the model knows, where that is to be checked.

    Raises:
        ValueError: what `TokenStream` raises; the split has fewer tokens than a window; the model knows fewer ids than
            the tokenizer has; a number is out of range.
    """

    def __init__(
        self,
        directory: str | Path,
        batch_size: int,
        length: int,
        seed: int,
        *,
        split: str = TRAINING,
        vocab_size: int | None = None,
    ) -> None:
        if batch_size < 1 or length < 3:
            raise ValueError(f"Need batch_size >= 1 and length >= 3, got {batch_size} and {length}.")
        self.stream = TokenStream(directory, split)
        known, tokens = self.stream.index.tokenizer["vocab_size"], self.stream.tokens
        if vocab_size is not None and vocab_size < known:
            raise ValueError(
                f"The model knows {vocab_size:,} token ids and the tokenizer of {directory} has {known:,}: give the "
                f"model a vocab_size of at least {known}."
            )
        if tokens < length:
            raise ValueError(
                f"The {split} split of {directory} has {tokens:,} tokens, less than one window of {length}: give more "
                "documents or a shorter length."
            )
        self.batch_size, self.length, self.seed = batch_size, length, seed
        self.vocab_size: int = known
        self.windows = max(1, (tokens - length + 1) // length)
        """Windows in an epoch."""
        self._offsets = min(length, tokens - self.windows * length + 1)

    def batch(self, step: int, part: int = 0, parts: int = 1) -> dict[str, Tensor]:
        """The batch of a step, or a part of it: windows `part`, `part` + `parts`, ...; all parts are the batch.

        Args:
            step: from 0.
            part: 0 <= part < parts.
            parts: divides batch_size.

        Returns:
            `input_ids` and `labels` int64 [1, R T / parts], and `cu_seqlens` int64 [N + 1], the bounds of the N pieces.
            `labels` are aligned as Hugging Face's (the model shifts), -100 at the first token of a piece.

        Raises:
            ValueError: parts do not divide the batch, or there is no such part.
        """
        require_part(self.batch_size, part, parts)
        ids, bounds = [], []
        for place, row in enumerate(range(part, self.batch_size, parts)):
            start = self._start(step * self.batch_size + row)
            ids.append(self.stream.read(start, self.length))
            begins = self.stream.starts(start, self.length)
            bounds.append(place * self.length + np.union1d([0], begins))
        cuts = torch.from_numpy(np.concatenate(bounds).astype(np.int64))
        input_ids = torch.from_numpy(np.concatenate(ids))
        labels = input_ids.clone()
        labels[cuts] = -100
        return {
            "input_ids": input_ids[None],
            "labels": labels[None],
            "cu_seqlens": torch.cat([cuts, torch.tensor([len(input_ids)])]),
        }

    def describe(self) -> dict[str, Any]:
        """The split and its checksum, the windows and the seed."""
        return {
            **self.stream.describe(),
            "batch_size": self.batch_size,
            "length": self.length,
            "seed": self.seed,
        }

    def _start(self, number: int) -> int:
        """Where the window with this number, counted through all steps, begins."""
        epoch, inside = divmod(number, self.windows)
        offset = step_seed("window offset", self.seed, epoch) % self._offsets
        return offset + self.length * permuted(inside, self.windows, step_seed("window order", self.seed, epoch))
