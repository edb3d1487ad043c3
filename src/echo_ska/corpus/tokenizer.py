"""The tokenizer of a corpus: bytes, or a folder of a Hugging Face tokenizer, known by its checksum."""

from __future__ import annotations

import bisect
import functools
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from echo_ska.models import byte_tokenizer
from echo_ska.models.own_code import OWN_CODE_IS_NOT_RUN, refusing_own_code
from echo_ska.sealed import digest, flush
from echo_ska.training.text import END_OF_FILE, VOCAB_SIZE

BYTES = "bytes"
DEFINITION = "tokenizer.json"
SPACE = "Ġ"
"""How byte-level tokenizers write a space."""
FILES = (DEFINITION, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
CONFIG = "config.json"
CHOOSING = ("model_type", "model_name", "tokenizer_class", "transformers_version")
"""What transformers looks up in a model's config.json to choose the tokenizer's class, and with it special tokens."""


class CorpusTokenizer:
    """Turns texts into rows of token ids; the token that closes a document is not part of what a text becomes.

    Args:
        name: "bytes", or the folder of a tokenizer as `save_pretrained` (or `echo-ska tokenizer train`) wrote it.

    Attributes:
        sha256: of tokenizer.json, or "bytes".
        vocab_size: one more than the largest id.
        end_token: the id that closes a document.
        tokenizer: to be kept beside a model that learns the corpus.

    Raises:
        ValueError: the folder holds no such tokenizer, or it has no end token.
    """

    def __init__(self, name: str) -> None:
        self.folder = None if name == BYTES else Path(name)
        self.tokenizer: PreTrainedTokenizerFast
        self._encoder: Tokenizer | None = None
        self._bytes: NDArray[np.int64] | None = None
        self._spaced: NDArray[np.bool_] | None = None
        self._unknown: int | None = None
        if self.folder is None:
            self.sha256, self.tokenizer = BYTES, byte_tokenizer()
            self.vocab_size, self.end_token = VOCAB_SIZE, END_OF_FILE
            return
        if not (self.folder / DEFINITION).is_file():
            raise ValueError(
                f"{self.folder} holds no tokenizer ({DEFINITION}): name bytes, or a folder that `echo-ska tokenizer "
                "train` or save_pretrained wrote."
            )
        try:
            with refusing_own_code(self.folder):
                self.tokenizer = AutoTokenizer.from_pretrained(self.folder, **OWN_CODE_IS_NOT_RUN)
            ids = self.tokenizer.get_vocab().values()
            # A copy, set to read texts whole and as they are; what is kept beside a model stays as it was.
            self._encoder = Tokenizer.from_str(self.tokenizer.backend_tokenizer.to_str())
        except Exception as error:  # `tokenizers` raises bare Exceptions
            raise ValueError(f"The tokenizer in {self.folder} cannot be read: {str(error).splitlines()[0]}") from None
        if self.tokenizer.eos_token_id is None:
            raise ValueError(
                f"The tokenizer in {self.folder} has no end token, so nothing would close a document: set its "
                "eos_token and save it again."
            )
        self._encoder.encode_special_tokens = True
        self._encoder.no_truncation()
        self._encoder.no_padding()
        if isinstance(self._encoder.model, BPE):
            self._encoder.model.dropout = None  # it draws what a text becomes, each time anew
        self.sha256 = digest(self.folder / DEFINITION)
        self.vocab_size, self.end_token = max(ids) + 1, int(self.tokenizer.eos_token_id)
        self._unknown = _unknown(self._encoder)
        self._bytes = _token_bytes(self._encoder, self.vocab_size)
        self._spaced = None if self._bytes is None else _spaced(self._encoder, self.vocab_size)

    def describe(self) -> dict[str, Any]:
        """What it is, for JSON."""
        return {"sha256": self.sha256, "vocab_size": self.vocab_size, "end_token": self.end_token}

    def encode(self, texts: Sequence[str]) -> list[NDArray[Any]]:
        """The ids of each text, [T_i] of unsigned integers, without anything added.

        No text becomes the end token, however it is spelled: where the token is also a piece of the model's vocabulary
        (Unigram, WordLevel), texts that hold it are encoded as if the piece were not there. What a text writes like
        another special token is text, too, unless it is such a piece.

        Raises:
            ValueError: the tokenizer's end token also stands for what it does not know, and a text has something so.
        """
        if self._encoder is None:
            return [np.frombuffer(text.encode(), np.uint8) for text in texts]
        encoded = _encoded(self._encoder, texts)
        ending = [number for number, ids in enumerate(encoded) if self.end_token in ids]
        if ending:
            again = _encoded(self._endless, [texts[number] for number in ending])
            for number, ids in zip(ending, again, strict=True):
                if self.end_token in ids:
                    raise ValueError(
                        f"The tokenizer in {self.folder} writes what it does not know as its end token, which would "
                        "end a document before its end: choose one with an unknown token of its own."
                    )
                encoded[number] = ids
        return encoded

    @functools.cached_property
    def _endless(self) -> Tokenizer:
        """The encoder of texts, without the end token among the pieces that a text can become."""
        assert self._encoder is not None
        encoder = Tokenizer.from_str(json.dumps(_without(json.loads(self._encoder.to_str()), self.end_token)))
        encoder.encode_special_tokens = True
        return encoder

    def text_bytes(self, ids: NDArray[Any]) -> int:
        """Bytes of UTF-8 that ids [T], from the beginning of a text on, stand for: exact for bytes and byte-level BPE.

        A space that the tokenizer puts before a text (`add_prefix_space`) is not counted. It puts none before a text
        that begins with one, whose ids are the same: of such a text one byte less is counted, see `own_space`.

        Of other tokenizers the ids are decoded: where they are cut inside a character, up to two more are counted.
        """
        if self.folder is None:
            return len(ids)
        if self._bytes is not None:
            return int(self._bytes[ids].sum()) - self._leading_space(ids)
        return len(str(self.tokenizer.decode(ids.tolist(), clean_up_tokenization_spaces=False)).encode())

    def first_bytes(self, ids: NDArray[Any], size: int) -> int:
        """Bytes of a text of `size` bytes that the first of its ids [T], T >= 1, stands for: 0 to `size`.

        The token for what is unknown does not say what it stands for: its share is what the known tokens leave, divided
        by how often it is there.
        """
        first = self.text_bytes(ids[:1])
        if ids[0] == self._unknown:
            times = int((ids == self._unknown).sum())
            first = (size - (self.text_bytes(ids) - times * first)) // times
        return min(max(first, 0), size)

    def own_space(self, ids: NDArray[Any], size: int) -> int:
        """1 if a whole text of `size` bytes, with ids [T], begins with a space that `text_bytes` leaves out, else 0."""
        return int(self._leading_space(ids) == 1 and size > self.text_bytes(ids))

    def within(self, ids: NDArray[Any], most: int) -> NDArray[Any]:
        """The first of ids [T], as many as stand for at most `most` bytes, as `text_bytes` counts."""
        if self.folder is None:
            return ids[:most]
        if self._bytes is not None:
            most += self._leading_space(ids)
            return ids[: int(np.searchsorted(np.cumsum(self._bytes[ids]), most, side="right"))]
        return ids[: bisect.bisect_right(range(1, len(ids) + 1), most, key=lambda count: self.text_bytes(ids[:count]))]

    def _leading_space(self, ids: NDArray[Any]) -> int:
        """1 if ids begin with a space that the tokenizer may have added; else 0."""
        return int(self._spaced is not None and len(ids) > 0 and bool(self._spaced[ids[0]]))

    def keep(self, folder: Path) -> None:
        """Copy its files into `folder`, which is made, in the place of those of another tokenizer; bytes need none.

        It may be the folder that they are in. Of a model's config.json, what chooses the tokenizer's class is copied.

        Raises:
            OSError: they could not be written.
        """
        self._copy(folder)

    def require_copy_alike(self) -> None:
        """See that what `keep` writes is read as this tokenizer, by a copy that is deleted.

        Raises:
            ValueError: it is not.
            OSError: the copy could not be written.
        """
        with tempfile.TemporaryDirectory() as folder:
            self._copy(Path(folder))
            try:
                alike = self.folder is None or CorpusTokenizer(folder)._decides() == self._decides()
            except ValueError:
                alike = False
        if not alike:
            raise ValueError(
                f"A copy of the tokenizer's files in {self.folder} is not read as the same tokenizer, so the corpus "
                "could not be opened: save it with save_pretrained in another folder, and name that."
            )

    def _decides(self) -> tuple[Any, ...]:
        """All that the ids of texts follow from."""
        return self.describe(), None if self._encoder is None else self._encoder.to_str()

    def _copy(self, folder: Path) -> None:
        if self.folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        for source, copy in ((self.folder / name, folder / name) for name in (*FILES, CONFIG)):
            if not source.is_file():
                copy.unlink(missing_ok=True)
            elif not (copy.exists() and copy.samefile(source)):
                if source.name == CONFIG:  # of a model; of its fields, only these are about its tokenizer
                    config = json.loads(source.read_text("utf-8"))
                    chosen = {name: config[name] for name in CHOOSING if name in config}
                    copy.write_text(json.dumps(chosen, indent=2) + "\n", "utf-8")
                else:
                    shutil.copyfile(source, copy)
                flush(copy)


def _encoded(encoder: Tokenizer, texts: Sequence[str]) -> list[NDArray[Any]]:
    encodings = encoder.encode_batch_fast(list(texts), add_special_tokens=False)
    return [np.asarray(encoding.ids, np.uint32) for encoding in encodings]


def _unknown(encoder: Tokenizer) -> int | None:
    """The id for what a tokenizer does not know, if it has one."""
    model = json.loads(encoder.to_str())["model"]
    if model.get("unk_token") is not None:
        return encoder.token_to_id(model["unk_token"])
    return model.get("unk_id")


def _without(definition: dict[str, Any], token: int) -> dict[str, Any]:
    """A tokenizer's definition in which the piece with the id `token` is spelled as no text is: behind a NUL.

    It keeps its place, since the ids of added tokens follow from how many pieces there are.
    """
    model = definition["model"]
    unigram = isinstance(model["vocab"], list)  # [piece, score] by id
    pieces = enumerate(piece for piece, _ in model["vocab"]) if unigram else ((n, p) for p, n in model["vocab"].items())
    spelled = next((piece for number, piece in pieces if number == token), None)
    if spelled is not None:
        unwritten = "\0" + spelled
        if unigram:
            model["vocab"][token][0] = unwritten
        else:
            model["vocab"][unwritten] = model["vocab"].pop(spelled)
        if model.get("unk_token") == spelled:
            model["unk_token"] = unwritten
        prefix = model.get("continuing_subword_prefix") or ""
        if "merges" in model:
            model["merges"] = [
                [left, right]
                for left, right in model["merges"]
                if spelled not in (left, right, left + right.removeprefix(prefix))
            ]
    for added in definition["added_tokens"]:
        if added["id"] == token:
            added |= {"content": "\0" + added["content"], "special": True}
    return definition


def _token_bytes(encoder: Tokenizer, vocab_size: int) -> NDArray[np.int64] | None:
    """Bytes of text that each id of a byte-level tokenizer stands for, [vocab_size]; None of any other.

    Such a tokenizer writes each byte as one character. Added tokens are written as they are.
    """
    definition = json.loads(encoder.to_str())
    decoder = definition["decoder"] or {}
    if "ByteLevel" not in {decoder.get("type"), *(part["type"] for part in decoder.get("decoders", []))}:
        return None
    sizes = np.zeros(vocab_size, np.int64)
    for piece, number in encoder.get_vocab(with_added_tokens=False).items():
        sizes[number] = len(piece)
    for token in definition["added_tokens"]:
        sizes[token["id"]] = len(token["content"].encode())
    return sizes


def _spaced(encoder: Tokenizer, vocab_size: int) -> NDArray[np.bool_] | None:
    """Which ids of a byte-level tokenizer begin with a space, [vocab_size]; None if it puts none before a text."""
    definition = json.loads(encoder.to_str())
    before = definition["pre_tokenizer"] or {}
    parts = before.get("pretokenizers", [before])
    if not any(part.get("type") == "ByteLevel" and part["add_prefix_space"] for part in parts):
        return None
    spaced = np.zeros(vocab_size, np.bool_)
    for piece, number in encoder.get_vocab(with_added_tokens=False).items():
        spaced[number] = piece.startswith(SPACE)
    spaced[[token["id"] for token in definition["added_tokens"]]] = False
    return spaced
