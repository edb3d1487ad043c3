"""`echo-ska data`: documents turned into shards of tokens; what such a corpus holds, and whether it is whole."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich import progress as bars
from rich.console import Console
from rich.table import Table

from echo_ska.commands.files import require_apart
from echo_ska.commands.rare_lines import RareLines, say
from echo_ska.corpus import CorpusIndex, CorpusSettings, Progress, prepare_corpus, read_index, verify_corpus
from echo_ska.corpus.index import KIND, SPLITS
from echo_ska.corpus.sources import KINDS, passed_over
from echo_ska.corpus.tokenizer import BYTES
from echo_ska.evaluation.memory_plot import format_bytes
from echo_ska.training.records import write_json


@dataclasses.dataclass(frozen=True)
class PrepareRequest:
    """What was asked for; the options of `echo-ska data prepare`, which documents them."""

    sources: list[str]
    output: Path
    tokenizer: str
    field: str
    held_out: float
    shard_tokens: int
    max_tokens: int | None


def prepare_data(request: PrepareRequest, json_file: Path | None, console: Console) -> None:
    """Prepare the corpus, or go on with it, and say what it holds.

    Raises:
        ValueError, OSError: see `prepare_corpus`.
        KeyboardInterrupt: Ctrl-C; the message says how to go on.
    """
    settings = CorpusSettings(
        request.tokenizer, request.field, request.held_out, request.shard_tokens, request.max_tokens
    )
    endings = [f"*{ending}" for each in KINDS.values() for ending in each]
    for source in request.sources:
        require_apart(Path(source), json_file, "SOURCE", files=endings)
    if request.tokenizer != BYTES:
        require_apart(Path(request.tokenizer), json_file, "--tokenizer")
    for source in request.sources:
        if others := passed_over(source):
            names = ", ".join(file.name for file in others[:3]) + (", ..." if len(others) > 3 else "")
            say(console, f"Passed over in {source}: {len(others):,} files of no kind that is read ({names}).")
    before = read_index(request.output) if (request.output / f"{KIND}.json").is_file() else None
    began = time.perf_counter()
    try:
        with _display(console, request.max_tokens) as show:

            def tell(done: Progress) -> None:
                nonlocal before
                if before is not None and before.complete:
                    why = "have been written to since" if before.stamps else "are not known to be as they were"
                    say(
                        console,
                        f"The corpus is complete, and its sources' files {why}: reading {before.documents_read:,} "
                        "documents once more to see that they are the same.",
                    )
                elif before is not None and _shards(before):  # only now: a command of other settings was refused
                    say(
                        console,
                        f"Going on after {before.documents_read:,} documents in {_shards(before)} whole shards.",
                    )
                before = None
                show(done)

            index = prepare_corpus(request.sources, request.output, settings, tell)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"Stopped; give the same command again to go on after the whole shards in {request.output}."
        ) from None
    _print(index, console)
    say(
        console,
        f"{time.perf_counter() - began:.1f} s. Kept in {request.output}; `echo-ska train --data {request.output}` "
        "learns it.",
    )
    write_json(json_file, _figures(request.output, index))


def show_data(directory: Path, json_file: Path | None, console: Console) -> None:
    """Say what a corpus holds, by its index.

    Raises:
        ValueError: there is none, or its index is damaged.
    """
    index = read_index(directory)
    _print(index, console)
    for source in index.settings["sources"]:
        shown = ", ".join(f"{name} {value}" for name, value in source.items() if name != "kind" and value is not None)
        say(console, f"Source, {source['kind']}: {shown}.")
    if not index.complete:
        say(console, "It is not complete: give the command that began it once more.")
    write_json(json_file, _figures(directory, index))


def verify_data(directory: Path, console: Console) -> None:
    """Read every file of a corpus.

    Raises:
        ValueError: there is none, or files are damaged or missing; names them.
    """
    show = verifying(read_index(directory), console)
    index = verify_corpus(directory, show)
    say(
        console,
        f"{directory} is whole: {_shards(index)} shards, {format_bytes(index.stored_bytes)} as written."
        + ("" if index.complete else " It is not complete: give the command that began it once more."),
    )


def verifying(index: CorpusIndex, console: Console) -> Callable[[str, int], None]:
    """What says, every ten seconds at most, how much of a corpus `verify_shards` has read."""
    total, read, lines = format_bytes(index.stored_bytes), 0, RareLines(console)

    def show(name: str, size: int) -> None:
        nonlocal read
        read += size
        lines.say(f"Verifying the corpus: {format_bytes(read)} of {total} are as written.")

    return show


def _shards(index: CorpusIndex) -> int:
    return sum(len(shards) for shards in index.splits.values())


def _figures(directory: Path, index: CorpusIndex) -> dict[str, Any]:
    splits = {
        split: {count: index.total(split, count) for count in ("documents", "tokens", "text_bytes")}
        | {"shards": len(index.splits[split])}
        for split in SPLITS
    }
    return {
        "directory": str(directory),
        "complete": index.complete,
        "dtype": index.dtype.name,
        "tokenizer": index.tokenizer,
        "settings": index.settings,
        "documents_read": index.documents_read,
        "skipped": index.skipped,
        "splits": splits,
    }


def _print(index: CorpusIndex, console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("split", no_wrap=True)
    for heading in ("documents", "tokens", "text", "bytes a token", "shards"):
        table.add_column(heading, justify="right", no_wrap=True)
    for split in SPLITS:
        documents, tokens, size = (index.total(split, count) for count in ("documents", "tokens", "text_bytes"))
        table.add_row(
            split,
            f"{documents:,}",
            f"{tokens:,}",
            format_bytes(size),
            f"{size / (tokens - documents):.2f}" if documents else "-",
            f"{len(index.splits[split]):,}",
        )
    console.print(table)
    sha256, vocab_size = index.tokenizer["sha256"], index.tokenizer["vocab_size"]
    name = BYTES if sha256 == BYTES else f"{vocab_size:,} tokens, {sha256[:12]}"
    skipped = ", ".join(f"{count:,} {why}" for why, count in index.skipped.items())
    say(console, f"Tokenizer: {name}, kept as {index.dtype.name}. Documents skipped: {skipped}.")


@contextlib.contextmanager
def _display(console: Console, max_tokens: int | None) -> Iterator[Callable[[Progress], None]]:
    """A bar in a terminal, a line every ten seconds elsewhere."""
    if not console.is_terminal:
        began, lines = time.monotonic(), RareLines(console)
        yield lambda done: lines.say(f"{_counts(done)}, {time.monotonic() - began:.0f} s, at {done.origin}")
        return
    columns = (
        bars.SpinnerColumn(),
        bars.BarColumn(bar_width=24),
        bars.TextColumn("{task.fields[counts]}"),
        bars.TimeElapsedColumn(),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("preparing", total=max_tokens, counts="")
        yield lambda done: bar.update(task, completed=done.tokens, counts=_counts(done))


def _counts(done: Progress) -> str:
    return f"{done.documents:,} documents, {done.tokens:,} tokens"
