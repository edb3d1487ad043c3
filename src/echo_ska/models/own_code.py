"""Folders of models and tokenizers may bring Python of their own; nothing here runs it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

OWN_CODE_IS_NOT_RUN = {"local_files_only": True, "trust_remote_code": False}
"""For every `from_pretrained` of transformers' Auto classes, which else ask on the terminal whether to run the code."""


@contextlib.contextmanager
def refusing_own_code(folder: Path) -> Iterator[None]:
    """Around such a call: says of a folder that needs its code run that it is not.

    Raises:
        ValueError: in one sentence, in the place of transformers' own.
    """
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(f"{folder} brings code of its own, which is not run: name one without.") from None
