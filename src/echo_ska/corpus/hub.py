"""Documents that are rows of a dataset on the Hugging Face hub, streamed: nothing is downloaded ahead."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from echo_ska.corpus.documents import Document, require_field, text_of

HUB = "hub:"
"""How the names of such sources begin."""


class HubSource:
    """A dataset by name, through `datasets.load_dataset(NAME, CONFIG, split=SPLIT, streaming=True)` (extra `data`).

    Args:
        name: "hub:NAME[@REVISION][:CONFIG[:SPLIT]]", as in "hub:HuggingFaceFW/fineweb-edu:sample-10BT:train". NAME may
            be a local folder in the layout of the hub's datasets, which has no revisions. SPLIT is train where it is
            left out. REVISION is a commit, tag or branch of the dataset; without one it is read as it is today.
        field: which column holds the text.

    Raises:
        ValueError: the name has another form, or is one that `datasets` gives to a reader of files of its own, or
            `datasets` is not installed.
    """

    def __init__(self, name: str, field: str) -> None:
        parts = name.removeprefix(HUB).split(":")
        if not (1 <= len(parts) <= 3 and all(parts)):
            raise ValueError(f"{name} names no dataset: write hub:NAME, hub:NAME:CONFIG or hub:NAME:CONFIG:SPLIT.")
        self.name, at, revision = (parts[0], "", "") if Path(parts[0]).is_dir() else parts[0].partition("@")
        if at and not (self.name and revision):
            raise ValueError(f"{name} names no revision: write hub:NAME@REVISION, a commit, tag or branch.")
        self.revision = revision or None
        self.config = parts[1] if len(parts) > 1 else None
        self.split = parts[2] if len(parts) > 2 else "train"
        self.field = field
        _load_dataset()
        if _is_reader(self.name):
            raise ValueError(
                f"{name} is no dataset: {self.name} is how `datasets` reads files of that kind (pandas runs code in "
                f"them). Name the dataset or the file; a folder of that name is hub:./{self.name}."
            )

    def describe(self) -> dict[str, Any]:
        """Name, configuration and split, and the revision if one was named."""
        described = {"kind": "hub", "name": self.name, "config": self.config, "split": self.split}
        return described if self.revision is None else described | {"revision": self.revision}

    def stamp(self) -> None:
        """None: whether a dataset has changed is not asked."""
        return

    def documents(self) -> Iterator[Document]:
        """The rows in the dataset's order, shards one after the other."""
        origin = f"{self.name} ({self.split})"
        try:
            load = _load_dataset()
            # Up to version 3 code in the dataset's folder could be run; later ones have none of it, nor the parameter.
            own_code = {"trust_remote_code": False} if "trust_remote_code" in inspect.signature(load).parameters else {}
            dataset = load(self.name, self.config, split=self.split, revision=self.revision, streaming=True, **own_code)
            names = dataset.column_names
        except Exception as error:  # ValueError, OSError, and many kinds of the libraries below
            raise ValueError(f"The dataset {origin} cannot be opened: {_first_line(error)}.") from error
        if names is not None:  # else the first row shows them
            require_field(self.field, list(names), f"The dataset {origin}")
            dataset = dataset.select_columns([self.field])
        rows, number = iter(dataset), 0
        while True:
            try:
                row = next(rows, None)
            except Exception as error:
                raise OSError(
                    f"The dataset {origin} cannot be read on after row {number}: {_first_line(error)}; give the same "
                    "command again to go on, unless the data itself is at fault."
                ) from error
            if row is None:
                return
            yield Document(text_of(row, self.field, f"{origin}, row {number}"), f"{origin}, row {number}")
            number += 1


def _load_dataset() -> Any:
    try:
        from datasets import load_dataset
    except ImportError:
        raise ValueError("Datasets of the hub are read by `datasets`: pip install 'echo-ska[data]'.") from None
    return load_dataset


def _is_reader(name: str) -> bool:
    """Whether `datasets` takes the name for one of its readers, before it looks for a folder or a dataset."""
    return name.isidentifier() and importlib.util.find_spec(f"datasets.packaged_modules.{name}") is not None


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
