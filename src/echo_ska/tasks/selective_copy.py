"""Selective copying: values stand scattered among noise and are to be written again, in their order, at the end.

One sequence of `SelectiveCopy(count=4, length=18)`, values from 64 ... 95, noise (.) from the fillers 96 ... 119;
rep = the marker REPEAT, 125:

    position    0    1    2    3    4    5    6    7    8    9   10   11   12   13   14   15   16   17
    role        .    .  val    .    .    .    .  val  val    .  val    .    .  rep  rep  rep  rep    .
    input     115   99   76  103   97   99  101   79   85  111   64  104   96  125  125  125  125  115
    label    -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100 -100   76   79   85   64

Nothing but its token says which of the tokens are data, and the noise between them is of random length, so that
no fixed shift copies them. As in the original, what is written is not read: the marker stands there once for
each answer, and the last answer stands where a filler is read. With `written=True` the answers are read, each
after it was predicted, as in ordinary language modelling: rep d1 d2 d3 d4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from echo_ska.tasks.alphabet import Alphabet, Marker
from echo_ska.tasks.base import RecallBatch, require_integer
from echo_ska.tasks.layout import StoredThenAsked


@dataclass(frozen=True, kw_only=True)
class SelectiveCopy(StoredThenAsked):
    """Selective copying (Gu & Dao 2023, arXiv 2312.00752, section 3.1; theirs has one noise token, 16 values).

    Attributes:
        count: values to copy, drawn with replacement.
        written: whether the answers are read after they were predicted.
        length, vocab_size, num_keys, num_values: see `AlphabetTask`.

    Raises:
        ValueError: for settings that cannot be met.

    Chance is 1 / num_values, also for who has read the answers before. Knowing the values, but not their order,
    gives over 1 / count.
    """

    count: int = 8
    written: bool = False

    def _check(self, alphabet: Alphabet) -> None:
        require_integer("count", self.count, 1)
        if not isinstance(self.written, bool):
            raise ValueError(f"written must be true or false, got {self.written!r}.")

    @property
    def _contents(self) -> str:
        return f"{self.count} values, a pause, a marker and the values again"

    @property
    def stored_shape(self) -> tuple[int, int]:
        """Single values."""
        return self.count, 1

    @property
    def asked_shape(self) -> tuple[int, int]:
        """The marker and all values."""
        return 1, 1 + self.count

    @property
    def scored(self) -> int:
        """All values."""
        return self.count

    def _draw(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        values = self.alphabet.draw_values((batch_size, self.count), generator)
        marker = torch.full((batch_size, 1), self.alphabet.marker(Marker.REPEAT))
        return values[:, :, None], torch.cat([marker, values], dim=1)[:, None]

    def sample(self, batch_size: int, generator: torch.Generator) -> RecallBatch:
        """Draw input_ids and labels, int64 [batch_size, length]; see `RecallTask.sample`."""
        batch = super().sample(batch_size, generator)
        if not self.written:
            batch.input_ids[:, -self.count :] = self.alphabet.marker(Marker.REPEAT)
            batch.input_ids[:, -1:] = self.alphabet.draw_fillers((batch_size, 1), generator)
        return batch
