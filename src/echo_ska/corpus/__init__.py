"""Corpora: documents from files, Parquet or the Hugging Face hub, as shards of tokens on disk, and batches from them.

`prepare_corpus` writes one, `verify_shards` and `verify_corpus` check it, `PackedTokens` trains on it,
`score_documents` scores a model on what it holds out. See docs/data.md.
"""

from echo_ska.corpus.documents import Document, Source
from echo_ska.corpus.index import CorpusIndex, Shard, read_index
from echo_ska.corpus.packed import PackedTokens
from echo_ska.corpus.prepare import CorpusSettings, Progress, prepare_corpus
from echo_ska.corpus.scoring import CorpusScore, score_documents
from echo_ska.corpus.sources import open_source
from echo_ska.corpus.stream import TokenStream
from echo_ska.corpus.tokenizer import CorpusTokenizer
from echo_ska.corpus.verify import verify_corpus, verify_shards

__all__ = [
    "CorpusIndex",
    "CorpusScore",
    "CorpusSettings",
    "CorpusTokenizer",
    "Document",
    "PackedTokens",
    "Progress",
    "Shard",
    "Source",
    "TokenStream",
    "open_source",
    "prepare_corpus",
    "read_index",
    "score_documents",
    "verify_corpus",
    "verify_shards",
]
