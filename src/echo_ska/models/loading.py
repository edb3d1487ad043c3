"""Loading by transformers, for callers that look at what was found themselves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from transformers.utils import logging


@contextlib.contextmanager
def unreported() -> Iterator[None]:
    """Around a `from_pretrained(output_loading_info=True)`: without transformers' table of what it then returns."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
