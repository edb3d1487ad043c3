"""Where documents come from: files of text, rows of JSON lines or Parquet, and datasets of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from echo_ska.corpus.documents import Source, TextSource
from echo_ska.corpus.hub import HUB, HubSource
from echo_ska.corpus.rows import JsonLinesSource, ParquetSource, RowFolder
from echo_ska.training.text import ROWS, SUFFIXES, files_inside

KINDS = {"text": SUFFIXES, **ROWS}
"""How the names of files of each kind end."""

RowSource = type[JsonLinesSource] | type[ParquetSource]
SOURCES: dict[str, RowSource] = {"JSON lines": JsonLinesSource, "Parquet": ParquetSource}


def open_source(name: str, field: str = "text") -> Source:
    """The source that a name stands for.

    Args:
        name: a file of text, one document; a file of JSON lines (*.jsonl, *.jsonl.gz, *.ndjson) or of Parquet
            (*.parquet), one document a row; a folder of files of one of these kinds (of text: *.txt and *.md),
            subfolders included, sorted, found as `load_text` finds them; or "hub:NAME[:CONFIG[:SPLIT]]", a dataset of
            the Hugging Face hub (or a local folder laid out like one), streamed.
        field: which field of a row holds the text.

    Raises:
        ValueError: a path does not exist or names data of a kind that is not read (`NO_TEXT`), a folder holds no
            documents or those of several kinds, the name of a dataset has another form, or what reads it is not
            installed.
    """
    if name.startswith(HUB):
        return HubSource(name, field)
    path = Path(name)
    if path.is_dir():
        return _folder(path, field)
    kind = _kind(path)
    if kind is None or kind not in SOURCES or not path.is_file():
        return TextSource(path)
    return SOURCES[kind](path, field)


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
    if kind not in SOURCES:
        return TextSource(path)
    return RowFolder(path, [SOURCES[kind](file, field) for file in found[kind]])


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
