"""Tokens as text while they come: a character is handed out once all of its tokens are there."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
MOST_HELD = 16
"""Tokens that are held back at most. A character has at most four; what ends in replacement characters for longer is
no text."""


class TextStream:
    """Decodes tokens one by one; all pieces together are the text of all tokens.

    Each piece is what the tokens since the piece before add to those before them (a window of two pieces), since some
    tokenizers write the first token of a text otherwise than the same token inside it.

    Args:
        tokenizer: whose tokens they are. Special tokens are left out.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._before: list[int] = []
        self._held: list[int] = []

    def push(self, token: int) -> str:
        """The text that `token` completes, which may be empty."""
        self._held.append(token)
        piece = self._piece()
        if piece.endswith(REPLACEMENT) and len(self._held) < MOST_HELD:
            return ""
        self._before, self._held = self._held, []
        return piece

    def close(self) -> str:
        """What is left, once there are no more tokens."""
        piece = self._piece()
        self._before, self._held = [], []
        return piece

    def _piece(self) -> str:
        return self._text(self._before + self._held)[len(self._text(self._before)) :]

    def _text(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True)) if tokens else ""
