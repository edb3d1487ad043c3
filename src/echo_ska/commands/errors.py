"""Errors as one sentence: nobody should have to read a traceback to learn that a file is missing."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

EXPECTED = (ValueError, OSError, ArithmeticError, MemoryError)
"""What the library raises when input, files or numbers are not as they must be. Anything else is a bug of ours, and
keeps its traceback."""

OUT_OF_MEMORY = ("can't allocate memory", "not enough memory: you tried to allocate", "out of memory")
"""Of torch's messages: Linux and macOS, Windows, GPUs."""

INTERRUPTED = 130
"""The exit code of a program that Ctrl-C ended, as shells have it."""


class OneSentenceErrors(TyperGroup):
    """A group of commands whose expected errors end in a red sentence on stderr and exit code 1.

    With ECHO_SKA_DEBUG=1 in the environment they keep their tracebacks.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        given = tuple(ctx.args)
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # The reader of our output went away, as `head` does. Python would complain once more when it flushes.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except EXPECTED as error:
            if os.environ.get("ECHO_SKA_DEBUG") == "1":
                raise
            _say(sentence(error, given), "red", error)
            raise typer.Exit(1) from None
        except RuntimeError as error:
            if not is_out_of_memory(error) or os.environ.get("ECHO_SKA_DEBUG") == "1":
                raise
            _say(f"There is not enough memory{memory_asked_for(error)}.", "red", error)
            raise typer.Exit(1) from None
        except KeyboardInterrupt as interrupt:
            _say(str(interrupt) or "Stopped.", "yellow", None)
            raise typer.Exit(INTERRUPTED) from None


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch found no memory; on a GPU that is an error of a kind of its own, on a CPU words alone tell."""
    said = str(error).lower()
    return type(error).__name__ == "OutOfMemoryError" or any(words in said for words in OUT_OF_MEMORY)


def memory_asked_for(error: RuntimeError) -> str:
    """ " (2.00 GiB were asked for at once)", as torch's message has it, or nothing."""
    found = re.search(r"ried to allocate ([\d.]+ \w+)", str(error))
    return "" if found is None else f" ({found.group(1)} were asked for at once)"


def sentence(error: BaseException, given: Sequence[str] = ()) -> str:
    """The error's message in one line: with a capital, a full stop, and no error number.

    Args:
        error: whose message it is.
        given: the words of the command line; one at the start of the message keeps its spelling.
    """
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    else:
        text = " ".join(str(error).split()) or type(error).__name__
    # A path or an option at the start keeps its spelling, and so does a name that looks like any word.
    first = text.split()[0]
    if first.isalpha() and first not in {
        word for argument in given for word in (argument, argument.rpartition("=")[2])
    }:
        text = text[0].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else text + "."


def _say(text: str, colour: str, error: Exception | None) -> None:
    """Print it; of several processes of `torchrun`, what all of them meet is told by the first alone."""
    if "RANK" in os.environ:
        from echo_ska.training.processes import is_shared, launched_rank

        if rank := launched_rank():
            if error is None or is_shared(error):
                return
            text = f"process {rank}: {text}"
    from rich.text import Text

    from echo_ska.commands.screen import screen

    screen(stderr=True, soft_wrap=True).print(Text(text, style=colour))
