"""What a process sends to others, counted where it is sent."""

from __future__ import annotations

import dataclasses
from collections import Counter

from torch import Tensor


@dataclasses.dataclass
class Traffic:
    """Messages and bytes that this process has sent, by what for and in which pass.

    Keys are (name, phase). The name is a layer's, as `named_modules` gives it, and the phase "forward" or "backward";
    what is not of one layer has the names "agreement", "loss", "gradients", "state" and "logits" and the phase
    "collective", and counts the bytes of the tensor that is gathered, summed or broadcast.

    Attributes:
        messages: how many.
        bytes: of their contents, as they are sent; without what the transport adds.
    """

    messages: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter)
    bytes: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter)

    def count(self, name: str, phase: str, message: Tensor) -> None:
        """Count one message that is about to be sent."""
        self.messages[name, phase] += 1
        self.bytes[name, phase] += message.numel() * message.element_size()

    def layers(self, phase: str) -> dict[str, tuple[int, int]]:
        """By layer: messages and bytes that this process sent in a pass, "forward" or "backward"."""
        return {name: (self.messages[name, own], sent) for (name, own), sent in self.bytes.items() if own == phase}

    def reset(self) -> None:
        """Start again from nothing."""
        self.messages.clear()
        self.bytes.clear()
