"""The command line, `echo-ska data`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from echo_ska.cli.options import JsonFile, console

Corpus = Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `echo-ska data prepare` wrote.")]

data_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Text as shards of tokens to train on: **echo-ska data prepare**, **show**, **verify**.",
)


@data_app.command("prepare")
def data_prepare(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Text files, *.jsonl, *.jsonl.gz, *.ndjson, *.parquet, folders of one of these, or "
            "hub:NAME[@REVISION][:CONFIG[:SPLIT]].",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where to write the shards.")],
    tokenizer: Annotated[
        str, typer.Option(metavar="bytes|FOLDER", help="bytes, or the folder of a Hugging Face tokenizer.")
    ] = "bytes",
    field: Annotated[str, typer.Option(help="Rows: the field that holds the text.")] = "text",
    held_out: Annotated[
        float, typer.Option(help="About which part of the documents to hold out; 0 holds none out.")
    ] = 0.01,
    shard_tokens: Annotated[
        int, typer.Option(help="Tokens between two shards: what a killed run has to tokenise again at most.")
    ] = 1 << 26,
    max_tokens: Annotated[
        int | None, typer.Option(help="Stop at so many tokens to train on; all documents else.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Turn documents into shards of tokens on disk, for `echo-ska train --data DIR`.

    A document is a text file or a row. Which are held out follows from their contents, so copies stay on one side. A
    run that was stopped, at any moment, goes on when the same command is given again, and ends with the same bits.

    **Examples**

    `echo-ska data prepare books/ notes.jsonl -o corpora/books --held-out 0.1`

    `echo-ska data prepare hub:HuggingFaceFW/fineweb-edu:sample-10BT --tokenizer tokenizers/web -o corpora/web`
    """
    from echo_ska.commands.files import require_apart, require_folder, require_writable

    require_writable(json_file, "--json")
    require_folder(output, "--output")
    require_apart(output, json_file)
    from echo_ska.commands.data import PrepareRequest, prepare_data

    request = PrepareRequest(sources, output, tokenizer, field, held_out, shard_tokens, max_tokens)
    prepare_data(request, json_file, console(json_file))


@data_app.command("show")
def data_show(directory: Corpus, json_file: JsonFile = None) -> None:
    """Say what a corpus holds: documents, tokens, bytes and shards of each split, its tokenizer and its sources.

    **Example:** `echo-ska data show corpora/books`
    """
    from echo_ska.commands.files import require_apart, require_writable

    require_writable(json_file, "--json")
    require_apart(directory, json_file, "DIR")
    from echo_ska.commands.data import show_data

    show_data(directory, json_file, console(json_file))


@data_app.command("verify")
def data_verify(directory: Corpus) -> None:
    """Hold every byte of a corpus to its checksums; exit code 1 if a shard is damaged or missing.

    **Example:** `echo-ska data verify corpora/books`
    """
    from echo_ska.commands.data import verify_data

    verify_data(directory, console())
