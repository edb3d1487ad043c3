"""WikiText's articles as lm-evaluation-harness reads them: apart, detokenised, with the original's words counted.

The published files mark what tokenising has changed (" @-@ " for a hyphen, a space before every comma). The harness's
`wikitext` undoes most of it before a model reads an article, but divides by the words and bytes of the original, so
that models with other tokenizers can be compared. `detokenized` gives its very text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

HEADING = re.compile(r"^ = [^=\s].* = $")
"""Of an article, if blank lines stand around it; sections have more equals signs."""

_PLAIN_BEFORE = (
    (" @-@ ", "-"),
    (" @,@ ", ","),
    (" @.@ ", "."),
    (" : ", ": "),
    (" ; ", "; "),
    (" . ", ". "),
    (" ! ", "! "),
    (" ? ", "? "),
    (" , ", ", "),
)
_ENCLOSED = (
    (re.compile(r"\(\s*([^\)]*?)\s*\)"), r"(\1)"),
    (re.compile(r"\[\s*([^\]]*?)\s*\]"), r"[\1]"),
    (re.compile(r"{\s*([^}]*?)\s*}"), r"{\1}"),
    (re.compile(r'"\s*([^"]*?)\s*"'), r'"\1"'),
    (re.compile(r"'\s*([^']*?)\s*'"), r"'\1'"),
)
_PLAIN_AFTER = (
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" \N{DEGREE SIGN} ", "\N{DEGREE SIGN}"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)


def articles(text: str) -> list[str]:
    """The articles of a file as published, each with its heading; what stands before the first is left out.

    Raises:
        ValueError: there is no heading.
    """
    lines = text.split("\n")

    def blank(place: int) -> bool:
        return not 0 <= place < len(lines) or not lines[place].strip()

    starts = [n for n, line in enumerate(lines) if HEADING.match(line) and blank(n - 1) and blank(n + 1)]
    if not starts:
        raise ValueError('no line is the heading of an article, such as " = Title = " between blank lines')
    ends = [*starts[1:], len(lines)]
    return ["\n".join(lines[start:end]) + "\n" * (end < len(lines)) for start, end in zip(starts, ends, strict=True)]


def detokenized(page: str) -> str:
    """An article's text as the harness's `wikitext_detokenizer` writes it, in the same order of replacements."""
    text = page.replace("s '", "s'")
    text = re.sub(r"/' [0-9]/", r"/'[0-9]/", text)  # as it stands there; no text is changed by it
    for old, new in _PLAIN_BEFORE:
        text = text.replace(old, new)
    for pattern, replacement in _ENCLOSED:
        text = pattern.sub(replacement, text)
    for old, new in _PLAIN_AFTER:
        text = text.replace(old, new)
    return text


def wikitext_rows(text: str) -> Iterator[dict[str, Any]]:
    """A row an article: `text` to be read, and `words` and `bytes` of the original, which perplexities are of."""
    for page in articles(text):
        words, size = len(re.split(r"\s+", page)), len(page.encode())
        yield {"text": detokenized(page), "words": words, "bytes": size}


def perplexity_parts(row: dict[str, Any], results: list[float]) -> dict[str, tuple[float, int]]:
    """What the harness sums over articles: the log-likelihood in nats, and what it is divided by."""
    (log_likelihood,) = results
    return {
        "word_perplexity": (log_likelihood, row["words"]),
        "byte_perplexity": (log_likelihood, row["bytes"]),
        "bits_per_byte": (log_likelihood, row["bytes"]),
    }
