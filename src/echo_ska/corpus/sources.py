"""Where documents come from: files of text, rows of JSON lines or Parquet, and datasets of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from echo_ska.corpus.documents import Source, TextSource
from echo_ska.corpus.hub import HUB, HubSource
from echo_ska.corpus.rows import JsonLinesSource, ParquetSource

JSON_LINES = (".jsonl", ".jsonl.gz")
PARQUET = ".parquet"


def open_source(name: str, field: str = "text") -> Source:
    """The source that a name stands for.

    Args:
        name: a file or folder of text (*.txt and *.md, one document a file, found as `load_text` finds them);
            a file of JSON lines (*.jsonl, *.jsonl.gz) or of Parquet (*.parquet), one document a row; or
            "hub:NAME[:CONFIG[:SPLIT]]", a dataset of the Hugging Face hub (or a local folder laid out like one),
            streamed.
        field: which field of a row holds the text.

    Raises:
        ValueError: a path does not exist or holds no text, the name of a dataset has another form, or what reads it is
            not installed.
    """
    if name.startswith(HUB):
        return HubSource(name, field)
    path = Path(name)
    if path.is_file() and path.name.lower().endswith(JSON_LINES):
        return JsonLinesSource(path, field)
    if path.is_file() and path.suffix.lower() == PARQUET:
        return ParquetSource(path, field)
    return TextSource(path)
