"""Where documents come from: files of text, rows of JSON lines or Parquet, and datasets of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from echo_ska.corpus.documents import Source, TextSource
from echo_ska.corpus.hub import HUB, HubSource
from echo_ska.corpus.rows import JsonLinesSource, ParquetSource, RowFolder
from echo_ska.training.text import SUFFIXES, files_inside

KINDS = {"text": SUFFIXES, "JSON lines": (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz"), "Parquet": (".parquet",)}
"""How the names of files of each kind end."""

ONE_A_LINE = "one object with its text a line"
UNREAD = {
    (".json",): f"is JSON: where it has {ONE_A_LINE}, rename it to *.jsonl; else write it so",
    (".csv", ".tsv", ".xml", ".html", ".htm", ".xlsx", ".arrow", ".feather", ".orc", ".avro"): (
        f"is of no kind that is read: write its documents as *.jsonl ({ONE_A_LINE}), as *.parquet or as files of text; "
        "only where all of it is one text, markup included, rename it to *.txt"
    ),
    (".gz", ".tgz", ".zip", ".bz2", ".xz", ".zst", ".7z", ".tar"): (
        "is compressed or packed: unpack it first; only *.jsonl.gz is read as it is"
    ),
}
"""How the names of data end that would become one document of markup, and what to do with such a file."""

ROWS: dict[str, type[JsonLinesSource] | type[ParquetSource]] = {"JSON lines": JsonLinesSource, "Parquet": ParquetSource}


def open_source(name: str, field: str = "text") -> Source:
    """The source that a name stands for.

    Args:
        name: a file of text, one document; a file of JSON lines (*.jsonl, *.jsonl.gz, *.ndjson) or of Parquet
            (*.parquet), one document a row; a folder of files of one of these kinds (of text: *.txt and *.md),
            subfolders included, sorted, found as `load_text` finds them; or "hub:NAME[:CONFIG[:SPLIT]]", a dataset of
            the Hugging Face hub (or a local folder laid out like one), streamed.
        field: which field of a row holds the text.

    Raises:
        ValueError: a path does not exist or names data of a kind that is not read (`UNREAD`), a folder holds no
            documents or those of several kinds, the name of a dataset has another form, or what reads it is not
            installed.
    """
    if name.startswith(HUB):
        return HubSource(name, field)
    path = Path(name)
    if path.is_dir():
        return _folder(path, field)
    kind = _kind(path)
    if kind is None and path.is_file():
        for endings, why in UNREAD.items():
            if path.name.lower().endswith(endings):
                raise ValueError(f"{path} {why}.")
    if kind is None or kind not in ROWS or not path.is_file():
        return TextSource(path)
    return ROWS[kind](path, field)


def passed_over(name: str) -> list[Path]:
    """The files in a source that is a folder which are of no kind, and not read."""
    path = Path(name)
    return _by_kind(path).get(None, []) if path.is_dir() and not name.startswith(HUB) else []


def _folder(path: Path, field: str) -> Source:
    found = _by_kind(path)
    kinds = [kind for kind in KINDS if kind in found]
    if not kinds:
        endings = ", ".join(f"*{ending}" for endings in KINDS.values() for ending in endings)
        raise ValueError(f"The folder {path} holds no documents: no {endings}, in subfolders either.")
    if len(kinds) > 1:
        counted = ", ".join(f"{len(found[kind]):,} of {kind} ({found[kind][0].name})" for kind in kinds)
        raise ValueError(
            f"The folder {path} holds files of several kinds, {counted}: name the files that are meant (a pattern of "
            "the shell does), or put each kind into a folder of its own."
        )
    (kind,) = kinds
    return RowFolder(path, [ROWS[kind](file, field) for file in found[kind]]) if kind in ROWS else TextSource(path)


def _by_kind(folder: Path) -> dict[str | None, list[Path]]:
    """The files in a folder by their kind, each once; None for those of no kind."""
    once: dict[Path, Path] = {}
    for file in files_inside(folder):
        once.setdefault(file.resolve(), file)
    found: dict[str | None, list[Path]] = {}
    for file in once.values():
        found.setdefault(_kind(file), []).append(file)
    return found


def _kind(path: Path) -> str | None:
    """The kind of a file by its name."""
    return next((kind for kind, endings in KINDS.items() if path.name.lower().endswith(endings)), None)
