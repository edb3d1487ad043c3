"""Tokens as text while they come: a character is handed out once all of its tokens are there."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
MOST_HELD = 16
"""Tokens that are held back at most. A character has at most four; what ends in replacement characters for longer is
no text."""
MAY_GROW = 3
"""Replacement characters at the end of a text that its next token may still turn into a character: some tokenizers
write one for all bytes of an unfinished character, some one for each, and three bytes can be unfinished."""


class TextStream:
    """Decodes tokens one by one; all pieces together are the text of all tokens.

    Each piece is what the tokens since the piece before add to those before them (a window of two pieces), since some
    tokenizers write the first token of a text otherwise than the same token inside it. Where a tokenizer with byte
    fallback makes no text at all of bytes because one among them is none, whole characters among them may still come.

    Args:
        tokenizer: whose tokens they are. Special tokens are left out.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._before = 0  # tokens at the beginning of the window whose text is handed out as a whole
        self._given = 0  # characters of the window's text that are handed out

    def push(self, token: int) -> str:
        """The text that `token` completes, which may be empty."""
        self._window.append(token)
        text = self._text(self._window)
        if not text.endswith(REPLACEMENT):
            if piece := text[self._given :]:
                self._window = self._window[self._before :]
                self._before, self._given = len(self._window), len(self._text(self._window))
            return piece
        if len(self._window) - self._before < MOST_HELD:
            return ""
        at_the_end = len(text) - len(text.rstrip(REPLACEMENT))
        begin, self._given = self._given, max(self._given, len(text) - min(at_the_end, MAY_GROW))
        piece = text[begin : self._given]
        self._shorten(text)
        return piece

    def close(self) -> str:
        """What is left, once there are no more tokens."""
        piece = self._text(self._window)[self._given :]
        self._window, self._before, self._given = [], 0, 0
        return piece

    def _shorten(self, text: str) -> None:
        """Let the window, whose text this is, begin at one of its last tokens, between two characters."""
        for at in range(len(self._window) - 1, max(0, len(self._window) - MOST_HELD), -1):
            head, rest = self._text(self._window[:at]), self._text(self._window[at:])
            # A character that is cut has more replacement characters than one that is not.
            if len(head) <= self._given and head + rest == text:
                self._window, self._before, self._given = self._window[at:], 0, self._given - len(head)
                return

    def _text(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True)) if tokens else ""
