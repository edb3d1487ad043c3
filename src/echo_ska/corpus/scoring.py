"""How well a model predicts the documents of a split, each read from its start with an empty state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from echo_ska.corpus.permutation import permuted
from echo_ska.corpus.stream import TokenStream
from echo_ska.corpus.tokenizer import CorpusTokenizer
from echo_ska.training.bits_per_byte import bits, read_tokens
from echo_ska.training.data import step_seed

LEAST_READ = 16_384
"""Bytes of a document that are read at least, where it has them and there is room for them."""
ORDER = step_seed("documents to score", 0, 0)
"""Key of the order in which documents are read: every model reads the same ones."""


class CorpusScore(NamedTuple):
    """What reading documents gave.

    Attributes:
        nats_per_token: the mean of -ln p(token | all of its document before it).
        bits_per_byte: the same predictions, by bytes of text: figures of other tokenizers compare with it.
        tokens_scored, bytes_scored: all tokens that were read but the first of each document.
        documents: that were read.
        state_bytes: of the largest state that reading a document left.
    """

    nats_per_token: float
    bits_per_byte: float
    tokens_scored: int
    bytes_scored: int
    documents: int
    state_bytes: int


def score_documents(
    model: nn.Module,
    stream: TokenStream,
    tokenizer: CorpusTokenizer,
    *,
    max_bytes: int | None = None,
    segment_length: int = 1024,
    progress: Callable[[int], None] | None = None,
) -> CorpusScore:
    """Score documents one by one, in segments that carry the state; it is empty at the start of each.

    Args:
        model: see `read_tokens`; its cache says its bytes, `nbytes`.
        stream: the documents.
        tokenizer: of the corpus.
        max_bytes: of text to read in all, at least 2: of each document its first max_bytes / documents, but at least
            16,384, until so many are read; which documents and how far does not depend on the model or the
            tokenizer, but for the token that the end of a part cuts. None reads everything.
        segment_length: tokens in a forward call, at least 1; it does not change the score.
        progress: called with the tokens read so far, after each document.

    Raises:
        ValueError: a number is out of range, or no document has text behind its first token.
    """
    if segment_length < 1:
        raise ValueError(f"segment_length must be at least 1, got {segment_length}.")
    nats, tokens, size, documents, state = 0.0, 0, 0, 0, 0
    for ids, scored_bytes in _to_read(stream, tokenizer, max_bytes):
        reading = read_tokens(model, torch.from_numpy(ids), segment_length=segment_length)
        nats += reading.nats
        size += scored_bytes
        tokens += reading.tokens_scored
        documents += 1
        state = max(state, reading.cache.nbytes)
        if progress is not None:
            progress(tokens + documents)
    return CorpusScore(nats / tokens, bits(nats) / size, tokens, size, documents, state)


def require_scorable(stream: TokenStream, tokenizer: CorpusTokenizer, *, max_bytes: int | None = None) -> None:
    """Look for a document that `score_documents` can score, without a model.

    Args:
        stream, tokenizer, max_bytes: see `score_documents`.

    Raises:
        ValueError: max_bytes is out of range, or no document that would be read has text behind its first token.
    """
    next(_to_read(stream, tokenizer, max_bytes))


def _to_read(
    stream: TokenStream, tokenizer: CorpusTokenizer, max_bytes: int | None
) -> Iterator[tuple[NDArray[np.int64], int]]:
    """What is read of each document that is: at least two tokens [T], and the bytes of text behind the first."""
    if max_bytes is not None and max_bytes < 2:
        raise ValueError(f"max_bytes must be at least 2, got {max_bytes}.")
    most = None if max_bytes is None else max(LEAST_READ, max_bytes // stream.documents)
    left, found = max_bytes, False
    for turn in range(stream.documents):
        ids, text_bytes = stream.document(permuted(turn, stream.documents, ORDER))
        own_space = tokenizer.own_space(ids, text_bytes)
        if most is not None and left is not None:
            if left < 2:
                break
            share = min(most, left)
            left -= min(share, text_bytes)
            if text_bytes > share:
                ids = tokenizer.within(ids, share - own_space)
                text_bytes = tokenizer.text_bytes(ids) + own_space
        if len(ids) > 1:  # an only token has nothing before it to be predicted from
            behind = text_bytes - own_space - tokenizer.first_bytes(ids, text_bytes - own_space)
            if behind > 0:
                found = True
                yield ids, behind
    if not found:
        raise ValueError(
            f"No document of the {stream.split} split has two tokens, and text behind the first: there is nothing to "
            "score."
        )
