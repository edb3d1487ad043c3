"""`echo-ska generate`: read a context and a prompt once, and write on from them as the tokens come."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from echo_ska.commands.load import load_model, load_tokenizer, require_model_folder, require_state
from echo_ska.commands.reading import reading
from echo_ska.commands.screen import screen
from echo_ska.commands.show import KINDS
from echo_ska.evaluation.memory_plot import format_bytes
from echo_ska.evaluation.sampling import Reading, check_sampling, end_tokens, printable, read_on, write_on
from echo_ska.evaluation.streaming import TextStream
from echo_ska.memory import ContextState
from echo_ska.models import EchoForCausalLM
from echo_ska.models.tokenization import encode
from echo_ska.training.records import is_printed, write_json


@dataclass(frozen=True)
class GenerateRequest:
    """What was asked for; the options of `echo-ska generate`, which documents them."""

    model: Path
    prompt: str
    context: Path | None
    state: Path | None
    max_new_tokens: int
    temperature: float
    top_k: int | None
    seed: int
    device: str


def generate(request: GenerateRequest, json_file: Path | None) -> None:
    """Write the text to standard output and the figures to standard error.

    Raises:
        ValueError: a folder, file, prompt or setting is not as it must be; nothing was written.
    """
    if is_printed(json_file):
        raise ValueError(f"--json {json_file} is standard output, to which the text goes: name a file.")
    check_sampling(request.max_new_tokens, request.temperature, request.top_k, seed=request.seed)
    require_model_folder(request.model)
    if request.context is not None and request.state is not None:
        raise ValueError("Give --context or --state, not both: `echo-ska context read` made the state of a context.")
    prompt = _prompt(request.prompt, may_be_empty=request.state is not None)
    if request.context is not None and not request.context.is_file():
        raise ValueError(f"--context {request.context} is not a file: name one with text.")
    model = load_model(request.model, request.device)
    require_state(model, request.model)
    tokenizer = load_tokenizer(request.model, model.config.vocab_size)
    state = None if request.state is None else ContextState.load(request.state, model)
    tokens_of_state = 0 if state is None else state.tokens
    console = screen(stderr=True, soft_wrap=True)

    began = time.perf_counter()
    read = _read(model, tokenizer, state, request.context, prompt, console)
    read_seconds, tokens_read = time.perf_counter() - began, read.tokens - tokens_of_state

    stream, tokens = TextStream(tokenizer), []
    began = time.perf_counter()
    written = write_on(
        model,
        read,
        request.max_new_tokens,
        temperature=request.temperature,
        top_k=request.top_k,
        stop_token=end_tokens(model, tokenizer),
        seed=request.seed,
    )
    for token in written:
        tokens.append(token)
        _put(stream.push(token))
    _put(stream.close() + "\n")
    write_seconds = time.perf_counter() - began

    read.cache.compact()
    figures = {
        "model": str(request.model),
        "tokens_of_state": tokens_of_state,
        "tokens_read": tokens_read,
        "tokens_written": len(tokens),
        "seconds_reading": read_seconds,
        "seconds_writing": write_seconds,
        "seconds_per_token": write_seconds / len(tokens) if tokens else None,
        "state_bytes": read.cache.bytes_by_kind(),
        "ended_itself": len(tokens) < request.max_new_tokens,
        "text": tokenizer.decode(tokens, skip_special_tokens=True),
    }
    console.print(_table(figures))
    settings = ("temperature", "top_k", "max_new_tokens", "seed")
    write_json(json_file, figures | {name: getattr(request, name) for name in settings})


def _prompt(given: str, may_be_empty: bool) -> str:
    """The prompt as text; "-" reads standard input to its end, as it is."""
    try:
        if given == "-":
            prompt = sys.stdin.buffer.read().decode()
        else:
            prompt = given
            prompt.encode()  # bytes of the command line that are no UTF-8 come as lone surrogates
    except UnicodeError as error:
        raise ValueError(
            f"The prompt is not UTF-8 text: {error.reason if hasattr(error, 'reason') else error}"
        ) from None
    if not prompt and not may_be_empty:
        raise ValueError("The prompt is empty: give --prompt TEXT, or --prompt - and text on standard input.")
    return prompt


def _read(
    model: EchoForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    state: ContextState | None,
    context: Path | None,
    prompt: str,
    console: Console,
) -> Reading:
    """The saved context or the context's file, block by block, and then the prompt."""
    with reading(tokenizer, console, shown=context is not None) as reader:

        def pieces() -> Iterator[Tensor]:
            if state is not None:
                yield torch.tensor([state.last_token])
            if context is not None:
                yield from reader.pieces(context)
            yield encode(tokenizer, prompt)

        past = None if state is None else state.cache(model.device)
        return read_on(model, pieces(), past_key_values=past, progress=reader.show)


def _put(text: str) -> None:
    """Text that a terminal cannot be commanded by, at once."""
    if text:
        typer.echo(printable(text), nl=False)
        if sys.stdout is not None:  # as it is where standard output was closed before the start
            sys.stdout.flush()


def _table(figures: dict) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(justify="right")
    speed = figures["tokens_read"] / max(figures["seconds_reading"], 1e-9)
    if figures["tokens_of_state"]:
        table.add_row("tokens of the state", f"{figures['tokens_of_state']:,}, not read again")
    table.add_row("tokens read", f"{figures['tokens_read']:,} ({speed:,.0f} a second)")
    table.add_row("tokens written", f"{figures['tokens_written']:,}")
    if figures["seconds_per_token"] is not None:
        table.add_row("time per token", f"{1000 * figures['seconds_per_token']:.2f} ms")
    for kind, size in figures["state_bytes"].items():
        table.add_row(f"state, {KINDS.get(kind, kind)}", format_bytes(size))
    return table
