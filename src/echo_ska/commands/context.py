"""`echo-ska context`: texts read once and kept as states; what a state or a store of them holds."""

from __future__ import annotations

import datetime
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from echo_ska.commands.load import load_model, load_tokenizer, require_model_folder, require_state
from echo_ska.commands.rare_lines import say
from echo_ska.commands.reading import reading
from echo_ska.commands.screen import screen
from echo_ska.commands.show import KINDS
from echo_ska.evaluation.memory_plot import format_bytes
from echo_ska.memory import ContextState, ContextStore
from echo_ska.memory.context import FORMAT, KIND
from echo_ska.memory.store import is_store
from echo_ska.sealed import read_description
from echo_ska.training.records import write_json

NAMES = KINDS | {"attention": KINDS["full_attention"]}
"""What tables call the kinds of `ContextState.bytes_by_kind`."""


def read_context(
    model_folder: Path, file: Path, output: Path, device: str, json_file: Path | None, console: Console
) -> None:
    """Read a text file block by block and save the context to the new folder `output`.

    Raises:
        ValueError: the model or the file is not as it must be; nothing was written.
        OSError: the file cannot be read, or the context not be written.
    """
    require_model_folder(model_folder)
    if not file.is_file():
        raise ValueError(f"{file} is not a file: name one with text.")
    model = load_model(model_folder, device)
    require_state(model, model_folder)
    tokenizer = load_tokenizer(model_folder, model.config.vocab_size)
    state: ContextState | None = None
    began = time.perf_counter()
    with reading(tokenizer, screen(stderr=True)) as reader:
        for ids in reader.pieces(file):
            if len(ids):
                before = 0 if state is None else state.tokens
                state = ContextState.read(
                    model, ids, state, progress=lambda done, _, before=before: reader.show(before + done)
                )
    if state is None:
        raise ValueError(f"{file} is empty: there is nothing to read.")
    seconds = time.perf_counter() - began
    state.save(output)
    figures = _figures(output, state) | {"model_folder": str(model_folder), "file": str(file), "seconds": seconds}
    say(console, f"{state.tokens:,} tokens in {seconds:.1f} s ({state.tokens / max(seconds, 1e-9):,.0f} a second).")
    console.print(_table(figures))
    say(console, f"Kept in {output}; `echo-ska generate {model_folder} --state {output}` goes on from there.")
    write_json(json_file, figures)


def show_context(folder: Path, json_file: Path | None, console: Console) -> None:
    """Say what a saved context holds, every byte verified.

    Raises:
        ValueError: there is none, or it is damaged (what its description says is then shown all the same, if that is
            whole).
        OSError: a file cannot be read.
    """
    description = read_description(folder, KIND, FORMAT)
    damage: ValueError | None = None
    try:
        figures = _figures(folder, ContextState.load(folder)) | {"whole": True}
    except ValueError as error:
        damage = error
        figures = {
            "tokens": description.get("tokens"),
            "fingerprint": description.get("fingerprint"),
            "bytes_by_kind": description.get("bytes_by_kind", {}),
            "whole": False,
            "damage": str(error),
        }
    console.print(_table(figures))
    write_json(json_file, figures)
    if damage is not None:
        raise damage


def list_contexts(folder: Path, json_file: Path | None, console: Console) -> None:
    """Say what a store holds, the most recently used first; nothing of it is deleted.

    Raises:
        ValueError: there is no store in `folder`.
        OSError: it cannot be read.
    """
    if not is_store(folder):
        raise ValueError(f"{folder} is no store of contexts: name the folder of a ContextStore, or serve's --store.")
    store = ContextStore(folder, sweep=False)
    listed: list[dict[str, Any]] = []
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("tokens", "bytes"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("model", "last used (UTC)", "name"):
        table.add_column(heading, no_wrap=True)
    for entry in store.list():
        try:
            used = datetime.datetime.fromtimestamp(store.last_used(entry), datetime.UTC).isoformat(timespec="seconds")
        except OSError:
            used = None  # deleted meanwhile, or lost: the store notices when it is next asked for
        listed.append(
            {
                "name": entry.name,
                "tokens": entry.tokens,
                "bytes": entry.nbytes,
                "fingerprint": entry.fingerprint,
                "last_used": used,
            }
        )
        when = "missing" if used is None else used.removesuffix("+00:00").replace("T", " ")
        table.add_row(f"{entry.tokens:,}", format_bytes(entry.nbytes), entry.fingerprint[:12], when, entry.name[:12])
    total = {"contexts": len(listed), "bytes": sum(row["bytes"] for row in listed)}
    if listed:
        console.print(table)
    say(
        console,
        f"{total['contexts']:,} context{'' if len(listed) == 1 else 's'}, {format_bytes(total['bytes'])} in all.",
    )
    write_json(json_file, {"store": str(folder), "contexts": listed, "total": total})


def _figures(folder: Path, state: ContextState) -> dict[str, Any]:
    return {
        "tokens": state.tokens,
        "fingerprint": state.fingerprint,
        "bytes": state.nbytes,
        "bytes_by_kind": state.bytes_by_kind(),
        "stored_bytes_by_kind": state.stored_bytes_by_kind(),
        "bytes_on_disk": sum(path.stat().st_size for path in folder.iterdir()),
    }


def _table(figures: dict[str, Any]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(justify="right")
    table.add_column(justify="right")
    if "whole" in figures:
        table.add_row("checksums", "whole" if figures["whole"] else "damaged")
    table.add_row("tokens", f"{figures['tokens']:,}")
    table.add_row("model", str(figures["fingerprint"])[:12])
    stored = figures.get("stored_bytes_by_kind")
    table.add_row("state", "in memory", "on disk" if stored else "")
    for kind, size in figures["bytes_by_kind"].items():
        table.add_row(NAMES.get(kind, kind), format_bytes(size), format_bytes(stored[kind]) if stored else "")
    if stored:
        table.add_row("all", format_bytes(figures["bytes"]), f"{format_bytes(figures['bytes_on_disk'])} with headers")
    return table
