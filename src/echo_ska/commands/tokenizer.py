"""`echo-ska tokenizer train`: byte pairs learnt from local text."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from echo_ska.commands.keep import whole_folder
from echo_ska.commands.rare_lines import say
from echo_ska.models import train_bpe
from echo_ska.training.text import find_text


def train_tokenizer(paths: Sequence[str], vocab_size: int, output: Path, console: Console) -> None:
    """Learn a tokenizer from files and folders of text, and save it.

    Raises:
        ValueError: see `train_bpe` and `find_text`.
        OSError: it could not be written; nothing is left of it.
    """
    files = find_text(paths)
    size = sum(file.stat().st_size for file in files)
    say(console, f"Learning up to {vocab_size:,} tokens from {len(files)} files, {size:,} bytes.")
    began = time.perf_counter()
    tokenizer = train_bpe(files, vocab_size)
    with whole_folder(output, "tokenizer") as folder:
        tokenizer.save_pretrained(folder)
    lacking = "" if len(tokenizer) == vocab_size else f" (the text has no pairs for {vocab_size:,})"
    say(
        console,
        f"{len(tokenizer):,} tokens{lacking} in {time.perf_counter() - began:.1f} s. Kept in {output}; "
        "AutoTokenizer.from_pretrained loads it.",
    )
