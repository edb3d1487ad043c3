"""The texts of experiments on language: a folder of the reader's own, known to records by names and checksums alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from echo_ska.training import RunRecord, TextData, TextFile, book_path, load_text
from echo_ska.training.text import digest

TRAIN, VALID, TEST = "train", "valid", "test"
WHAT_IT_HOLDS = (
    "a folder with train/ (texts to learn from), valid/ (one more by an author of train/, to choose learning rates by) "
    "and test/ (texts by authors that train/ does not have), each with *.txt files, and if you like further folders to "
    "score, such as wikitext2/; novels to make it of are at github.com/computationalstylistics (100_english_novels)"
)
ONLY = "test.txt"
"""Of a further folder that has such a file, no other is read: it is the part of a published data set for tests."""


@dataclass(frozen=True)
class TextFolder:
    """Texts by part: `TRAIN`, `VALID`, `TEST`, and the names of further folders.

    Attributes:
        folder: where they are; None where only a record tells of them.
        described: JSON, by part: `files`, their names; `bytes`, their lengths; `blake2b`, of all of them together. Of
            a folder that records alone tell of, the parts that they read, and of `TRAIN` no lengths.
    """

    folder: Path | None
    described: str

    @classmethod
    def read(cls, folder: Path | None, experiment: str) -> TextFolder:
        """Look through a folder, reading all of it once.

        Args:
            folder: what `--text` names.
            experiment: its name, for the errors.

        Raises:
            ValueError: there is no folder, a part is missing, a file is no text, or a text is in two parts: a model
                must not be scored on text that it was trained or tuned on. Says what to do.
        """
        if folder is None:
            raise ValueError(f"{experiment} learns from texts that are not part of it: give --text {WHAT_IT_HOLDS}.")
        for part in (TRAIN, VALID, TEST):
            if not (folder / part).is_dir():
                raise ValueError(f"{folder} has no folder {part}: --text takes {WHAT_IT_HOLDS}.")
        further = sorted(
            path.name
            for path in folder.iterdir()
            if path.is_dir() and path.name not in (TRAIN, VALID, TEST) and any(path.glob("*.txt"))
        )
        names = (TRAIN, VALID, TEST, *further)
        return cls(folder.absolute(), _described({part: load_text(_paths(folder, part)) for part in names}))

    @classmethod
    def of_records(cls, records: Sequence[RunRecord]) -> TextFolder:
        """The texts that the newest record was trained on, and what runs on these were scored by; none are at hand.

        Args:
            records: of one experiment, at least one, the oldest first. A run tells of what it read alone, so that a
                rate's try, which tells of `VALID`, stays valid whatever is scored later: each of `VALID` and what is
                `scored` is as the newest run has it that read it.
        """
        data = records[-1].configuration["data"]
        alike = [
            record.configuration for record in records if record.configuration["data"]["blake2b"] == data["blake2b"]
        ]

        def newest(part: str) -> Mapping[str, Any]:
            return next((each["texts"] for each in reversed(alike) if part in each["texts"]), {})

        train = {"files": data["files"], "blake2b": data["blake2b"]}
        return cls(None, json.dumps({TRAIN: train, **newest(VALID), **newest(TEST)}))

    @property
    def parts(self) -> dict[str, dict[str, Any]]:
        """What is known of each part."""
        found: dict[str, dict[str, Any]] = json.loads(self.described)
        return found

    @property
    def scored(self) -> list[str]:
        """The parts that no training and no choice of a rate has seen: `TEST`, then the further ones."""
        return [part for part in self.parts if part not in (TRAIN, VALID)]

    def load(self, part: str) -> list[TextFile]:
        """The texts of a part.

        Raises:
            ValueError: they are not at hand, or not what was described.
        """
        files = self.files(part)
        if TextData(files, 1, 2, 0).describe()["blake2b"] != self.parts[part]["blake2b"]:
            raise ValueError(f"The texts of {part} have changed since this run began: start it again.")
        return files

    def files(self, part: str) -> list[TextFile]:
        """The texts of a part as they are now.

        Raises:
            ValueError: they are not at hand.
        """
        if self.folder is None:
            raise ValueError(f"The texts of {part} are known by a record alone: give their folder by --text.")
        return load_text(_paths(self.folder, part))

    def describe_training(self, batch_size: int, length: int, seed: int) -> dict[str, Any]:
        """What `TextData.describe` says of the training text, without reading it."""
        part = self.parts[TRAIN]
        windows = {"batch_size": batch_size, "length": length, "seed": seed}
        return {"files": part["files"], "blake2b": part["blake2b"], **windows}


class ShippedNovels(TextFolder):
    """The two novels that the package ships: one to learn but for its last eighth, which is `VALID`; one as `TEST`."""

    @classmethod
    def read_shipped(cls) -> ShippedNovels:
        """Read both."""
        return cls(None, _described({part: _shipped(part) for part in (TRAIN, VALID, TEST)}))

    def files(self, part: str) -> list[TextFile]:
        """See `TextFolder.files`."""
        return _shipped(part)


def _shipped(part: str) -> list[TextFile]:
    if part == TEST:
        return load_text([book_path("unseen")])
    (novel,) = load_text([book_path("train")])
    learnt = len(novel.tokens) * 7 // 8
    return [TextFile(novel.path, novel.tokens[:learnt] if part == TRAIN else novel.tokens[learnt:])]


def _described(parts: Mapping[str, Sequence[TextFile]]) -> str:
    """`TextFolder.described` of these texts, of which none may be in two parts."""
    found: dict[str, dict[str, Any]] = {}
    places: dict[str, str] = {}
    for part, files in parts.items():
        for file in files:
            name = f"{part}/{file.path.name}"
            other = places.setdefault(digest(file.tokens), name)
            if not other.startswith(f"{part}/"):
                raise ValueError(
                    f"{name} and {other} are the same text, and each part has to be new to those before it: "
                    "take one away."
                )
        data = TextData(files, 1, 2, 0).describe()
        sizes = [len(file.tokens) for file in files]
        found[part] = {"files": data["files"], "bytes": sizes, "blake2b": data["blake2b"]}
    return json.dumps(found)


def _paths(folder: Path, part: str) -> list[Path]:
    if part not in (TRAIN, VALID, TEST) and (only := folder / part / ONLY).is_file():
        return [only]
    return sorted((folder / part).glob("*.txt")) or [folder / part]  # the folder itself: refused in a sentence
