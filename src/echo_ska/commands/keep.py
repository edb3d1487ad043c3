"""The folder that a command ends with: it is whole or absent, and a full disk is one sentence."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from echo_ska.commands.files import UNFINISHED
from echo_ska.sealed import SUMS, flush, locked_folder


def whole_model(kept: Path, *, replace: bool = False) -> contextlib.AbstractContextManager[Path]:
    """`whole_folder` for the model of a run, whose checkpoints stand beside it."""
    return whole_folder(
        kept,
        "model",
        f"the checkpoints in {kept.parent} are kept: make room, or see that the folder can be written to, and give the "
        "same command again, which trains nothing anew",
        replace=replace,
    )


@contextlib.contextmanager
def whole_folder(
    kept: Path,
    holds: str,
    remedy: str = "make room, or see that the folder can be written to, and give the same command again",
    *,
    replace: bool = False,
) -> Iterator[Path]:
    """A folder to write to, which becomes `kept` at the end.

    Args:
        kept: what is to be written; an empty folder, or none yet.
        holds: what it holds, for the error.
        remedy: what to do after an error.
        replace: a folder that stands there is replaced as a whole; files of it that were not written anew stay in it.

    Raises:
        ValueError: `kept` holds something by now, and `replace` is False.
        OSError: something could not be written; what stood in `kept` before stands there still.
    """
    named, kept = kept, Path(os.path.realpath(kept))
    # Into an empty folder that stands already: beside it may be another disk, or no permission to write.
    inside = kept.is_dir() and not replace
    partial = kept / UNFINISHED / secrets.token_hex(4) if inside else _beside(kept)
    try:
        _delete_abandoned(kept)
        partial.mkdir(parents=True)
        with locked_folder(partial):
            yield partial
            for path in (*partial.rglob("*"), partial):
                flush(path)
            if inside:
                filled = not _move_up(partial, kept)
            else:
                filled = not _put_in_place(partial, kept, replace)
        if filled:
            raise ValueError(f"{named} was filled by another command meanwhile: nothing is overwritten, name another.")
    except Exception as error:
        # `tokenizers` raises bare Exceptions.
        if not isinstance(error, OSError | SafetensorError) and type(error) is not Exception:
            raise
        reason = (getattr(error, "strerror", None) or str(error)).rstrip(".")
        raise OSError(f"The {holds} {named} could not be written ({reason}); {remedy}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        with contextlib.suppress(OSError):  # none, or another command is writing in it
            (kept / UNFINISHED).rmdir()


def _beside(kept: Path) -> Path:
    """A name of its own beside `kept`: another command may be writing the same folder."""
    return kept.with_name(f"{UNFINISHED}-{kept.name}-{secrets.token_hex(4)}")


def _delete_abandoned(kept: Path) -> None:
    """Delete what killed commands left of this folder: what nobody holds, as far as the file system can tell."""
    own = re.compile(rf"{re.escape(f'{UNFINISHED}-{kept.name}-')}[0-9a-f]{{8}}")
    beside = (path for path in kept.parent.glob(f"{UNFINISHED}-*") if own.fullmatch(path.name))
    for path in (*(kept / UNFINISHED).glob("*"), *beside):
        with contextlib.suppress(OSError), locked_folder(path, wait=False) as held:  # BlockingIOError: it is written
            if held:
                shutil.rmtree(path, ignore_errors=True)


def _move_up(partial: Path, kept: Path) -> bool:
    """Move all that is in `partial` to `kept`, in which it stands; False where that holds anything else by now."""
    moved = []
    with locked_folder(kept):  # another command that is as far waits, and then finds it filled
        if any(path.name != UNFINISHED for path in kept.iterdir()):
            return False
        try:
            for path in sorted(partial.iterdir(), key=lambda path: path.name == SUMS):  # the checksums last
                moved.append(kept / path.name)
                path.rename(kept / path.name)
            flush(kept)
        except BaseException:
            for path in moved:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
            raise
    return True


def _put_in_place(partial: Path, kept: Path, replace: bool) -> bool:
    """Rename `partial` to `kept`; what stands there goes aside first and is deleted last. False where it is to stay."""
    if not os.path.lexists(kept):
        partial.rename(kept)
        flush(kept.parent)
        return True
    if not replace:
        return False
    for path in kept.rglob("*"):
        copy = partial / path.relative_to(kept)
        if path.is_file() and not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)
            flush(copy)
    aside = _beside(kept)
    try:
        kept.rename(aside)
        partial.rename(kept)
        flush(kept.parent)
    finally:
        if not kept.exists() and aside.exists():
            aside.rename(kept)
        shutil.rmtree(aside, ignore_errors=True)
    return True
