"""One alphabet for many tasks, so that a model trained on some of them can be asked the others.

    tokens      0 ... 63    64 ... 95    96 ... 119    120 ... 127
    role        keys        values       fillers       markers

Keys and values come first, as in `MultiQueryRecallGrid`. The grid takes all later tokens for fillers, markers
too: with `vocab_size=120` it keeps to the fillers here, and a model of 128 tokens reads it as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from echo_ska.tasks.base import require_integer

NUM_MARKERS = 8
"""Tokens at the end of the alphabet that say what comes. Those without a name below are kept free."""


class Marker(IntEnum):
    """Markers by their place among the last `NUM_MARKERS` tokens."""

    SYSTEM = 0
    """Opens a system prompt."""
    USER = 1
    """Opens the conversation after it."""
    TRACE = 2
    """Opens a log of tool calls."""
    ASK = 3
    """Closes the log: questions follow."""
    FOLLOW = 4
    """The next key is asked for the END of its chain, not for what is stored with it."""
    REPEAT = 5
    """The values among the noise are to be written again, in their order."""
    ADD = 6
    """A line of a ledger that adds to an amount, where others set it."""


WORDS = {
    Marker.SYSTEM: "sys",
    Marker.USER: "usr",
    Marker.TRACE: "tr",
    Marker.ASK: "end",
    Marker.FOLLOW: "flw",
    Marker.REPEAT: "rep",
    Marker.ADD: "add",
}
"""Words for markers as tasks draw them; but ASK, which ends a log, is "end": "ask" is where an answer follows."""


@dataclass(frozen=True)
class Alphabet:
    """Which tokens are keys, values, fillers and markers.

    Attributes:
        vocab_size: tokens in all.
        num_keys: keys, 0 ... num_keys - 1.
        num_values: values, the next num_values. Fillers are what remains before the last 8, the markers.

    Raises:
        ValueError: for numbers below 1 (2 of keys and of values), or a vocabulary that has no room for a filler.
    """

    vocab_size: int = 128
    num_keys: int = 64
    num_values: int = 32

    def __post_init__(self) -> None:
        require_integer("vocab_size", self.vocab_size, 1)
        require_integer("num_keys", self.num_keys, 2)
        require_integer("num_values", self.num_values, 2)
        needed = self.num_keys + self.num_values + 1 + NUM_MARKERS
        if self.vocab_size < needed:
            raise ValueError(
                f"{self.num_keys} keys, {self.num_values} values, a filler and {NUM_MARKERS} markers need a "
                f"vocab_size of at least {needed}, got {self.vocab_size}: enlarge it or use fewer of them."
            )

    @property
    def first_value(self) -> int:
        """The first of the values."""
        return self.num_keys

    @property
    def first_filler(self) -> int:
        """The first of the fillers."""
        return self.num_keys + self.num_values

    @property
    def first_marker(self) -> int:
        """The first of the markers, and the end of the fillers."""
        return self.vocab_size - NUM_MARKERS

    def marker(self, name: Marker) -> int:
        """The token of a marker."""
        return self.first_marker + name

    @property
    def words(self) -> list[str]:
        """What each token is for, [vocab_size]: "key", "val", "." for fillers, and of markers their `WORDS`."""
        fillers = self.first_marker - self.first_filler
        markers = [*WORDS.values()] + ["free"] * (NUM_MARKERS - len(WORDS))
        return ["key"] * self.num_keys + ["val"] * self.num_values + ["."] * fillers + markers

    def draw_values(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Values, uniform and with replacement: int64 of this shape."""
        return torch.randint(self.first_value, self.first_filler, shape, generator=generator)

    def draw_fillers(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Fillers, uniform and with replacement: int64 of this shape."""
        return torch.randint(self.first_filler, self.first_marker, shape, generator=generator)
