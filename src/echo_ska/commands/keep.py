"""The folder that a command ends with: it is whole or absent, and a full disk is one sentence."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from echo_ska.commands.files import UNFINISHED
from echo_ska.sealed import PARTIAL


def whole_model(kept: Path) -> contextlib.AbstractContextManager[Path]:
    """`whole_folder` for the model of a run, whose checkpoints stand beside it."""
    return whole_folder(
        kept,
        "model",
        f"the checkpoints in {kept.parent} are kept: make room, or see that the folder can be written to, and give the "
        "same command again, which trains nothing anew",
    )


@contextlib.contextmanager
def whole_folder(
    kept: Path,
    holds: str,
    remedy: str = "make room, or see that the folder can be written to, and give the same command again",
) -> Iterator[Path]:
    """A folder to write to, which becomes `kept` at the end; where that exists its files are replaced.

    Args:
        kept: what is to be written.
        holds: what it holds, for the error.
        remedy: what to do after an error.

    Raises:
        OSError: something could not be written; what stood in `kept` before stands there still.
    """
    # In a folder that stands already: beside it may be another disk, or no permission to write.
    partial = kept / UNFINISHED if kept.is_dir() else kept.with_name(PARTIAL + kept.name)
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a call that was killed
        partial.mkdir(parents=True)
        yield partial
        _move(partial, kept)
    except Exception as error:
        # `tokenizers` raises bare Exceptions.
        if not isinstance(error, OSError | SafetensorError) and type(error) is not Exception:
            raise
        reason = (getattr(error, "strerror", None) or str(error)).rstrip(".")
        raise OSError(f"The {holds} {kept} could not be written ({reason}); {remedy}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _move(partial: Path, kept: Path) -> None:
    if not kept.exists():
        partial.rename(kept)
        return
    for path in sorted(partial.rglob("*")):
        if path.is_file():
            target = kept / path.relative_to(partial)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
