"""The documents of the tests' corpora."""

from __future__ import annotations


def sentence(number: int) -> str:
    """A text of its own length for each number; some characters take several bytes."""
    return f"Document {number} – é, 🤖. " + "word " * (number * number % 23)
