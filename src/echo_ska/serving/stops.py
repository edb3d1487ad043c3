"""Strings that end an answer, looked for while its text comes in pieces."""

from __future__ import annotations


class StopStrings:
    """Hands text on until one of the strings has come; what may be the beginning of one is held back.

    All pieces together are the text before the string that is whole first; of several that one piece makes whole,
    before the one that begins first.

    Args:
        stops: none empty.

    Attributes:
        found: whether one has come; from then on everything is swallowed.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops, self._held, self.found = stops, "", False

    def push(self, text: str) -> str:
        """What `text` lets go, which may be empty."""
        if self.found:
            return ""
        text = self._held + text
        places = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def close(self) -> str:
        """What is held back, once there is no more text."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of `text` that `stop` begins with, not all of it."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
