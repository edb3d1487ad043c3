"""Tokenizers that need no download: one token a byte, or byte pairs learnt from local text."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

BYTE_END = "\0"
"""The byte tokenizer's only special token, id 0: the NUL byte that closes each file in the training of
`echo-ska train --text`. Text holds none."""

BPE_END = "<|endoftext|>"
"""The special token of `train_bpe`, id 0."""

BLOCK_BYTES = 1 << 16

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% set text %}"
    "{{ message['role'] + ':\n' }}"
    "{% if message['content'] is string %}"
    "{{ message['content'] }}"
    "{% else %}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{% endset %}"
    "{{ text | replace(eos_token, ' ') }}{{ eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:\n' }}{% endif %}"
)
"""Each message is a small text of its own: its role and a colon on the first line, its content, the end token.

An answer therefore ends with the token that `generate` stops at. A message cannot close itself: in its whole text, a
space takes the place of each end token. If nothing took it, what stands around one could join to another. Content is a
string or a list of parts with a `text`, as chat endpoints send it.
"""


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer whose ids are the bytes of UTF-8 text, 0 to 255: what `echo-ska train --text` learns.

    Every text, control characters and emoji included, is given back exactly by `decode(ids)`; with
    `skip_special_tokens=True` without its NUL characters. Ids that are no UTF-8 are decoded with replacement
    characters. Offsets are those of the character that a byte belongs to. A string with lone surrogates is no text,
    and raises TypeError or UnicodeError in `tokenizers`.

    Id 0 is the end, the beginning and the padding at once (there are no other ids); padding is put on the left.
    """
    # The characters that `tokenizers` writes bytes as, by byte; but NUL stands for itself, so that the special token
    # is the NUL byte and no printable character of a text is taken for it.
    vocabulary = {character: byte for byte, character in enumerate(_byte_characters())}
    del vocabulary[_byte_characters()[0]]
    vocabulary[BYTE_END] = 0
    tokenizer = Tokenizer(BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    return _finished(tokenizer, BYTE_END)


def train_bpe(files: Iterable[str | Path], vocab_size: int) -> PreTrainedTokenizerFast:
    """Learn byte pairs (byte-level BPE with GPT-2's division into words) from text files.

    The files are read in blocks, so that memory follows the number of different words, not the length of the text.
    Every text is given back exactly, also one with characters that the files do not hold.

    Args:
        files: UTF-8 text files.
        vocab_size: tokens to end with, at least 257 (256 bytes and `BPE_END`). Short texts have fewer pairs than asked
            for; `len(tokenizer)` says how many there are.

    Raises:
        ValueError: a vocab_size below 257, no file, no text in them, or a file that is not UTF-8 (with the offset of
            the byte).
        OSError: a file cannot be read.

    Source: Sennrich et al., arXiv 1508.07909; Radford et al. 2019 (GPT-2) for bytes.
    """
    paths = [Path(path) for path in files]
    if vocab_size < 257:
        raise ValueError(f"vocab_size must be at least 257 (256 bytes and one special token), got {vocab_size}")
    if not paths:
        raise ValueError("there is no file to learn a tokenizer from: name at least one")
    found = 0

    def blocks() -> Iterator[str]:
        nonlocal found
        for path in paths:
            for block in text_blocks(path):
                found += len(block)
                yield block

    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BPE_END],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(blocks(), trainer)
    if found == 0:
        raise ValueError(f"{', '.join(map(str, paths))}: there is no text to learn a tokenizer from")
    return _finished(tokenizer, BPE_END)


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> Tensor:
    """The ids of a text without anything added to it, int64 [T]."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.int64)


def text_blocks(path: str | Path, block_bytes: int = BLOCK_BYTES) -> Iterator[str]:
    """The text of a UTF-8 file in blocks, so that memory does not follow its length; joined, they are the text.

    Blocks are cut before a space or a line end between two words where there is one, so that a block's tokens are
    those of the whole text. A byte-order mark is removed; CRLF and CR become LF.

    Args:
        path: the file.
        block_bytes: bytes read at once, at least 1.

    Raises:
        ValueError: it is not UTF-8; names the byte, counted from 0.
        OSError: it cannot be read.
    """
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8-sig")(), translate=True)
    rest, end = "", 0
    with Path(path).open("rb") as file:
        while raw := file.read(block_bytes):
            end += len(raw)
            rest += _decoded(decoder, raw, path, end)
            cut = _cut_between_words(rest)
            if cut:
                yield rest[:cut]
                rest = rest[cut:]
        rest += _decoded(decoder, b"", path, end)
    if rest:
        yield rest


def _decoded(decoder: io.IncrementalNewlineDecoder, raw: bytes, path: str | Path, end: int) -> str:
    try:
        return decoder.decode(raw, final=not raw)
    except UnicodeDecodeError as error:
        at = end - len(error.object) + error.start
        raise ValueError(
            f"{path} is not UTF-8 text: byte {at} is {error.object[error.start]:#04x} ({error.reason}); convert it to "
            "UTF-8 or leave it out"
        ) from None


def _cut_between_words(text: str) -> int:
    """Where to cut; a text without spaces (a language without them, or one long word) is cut at its end."""
    for at in range(len(text) - 2, 0, -1):
        if text[at] in " \n" and not text[at - 1].isspace() and not text[at + 1].isspace():
            return at
    return max(0, len(text) - 1)  # what ends in spaces may go on with some


def _finished(tokenizer: Tokenizer, end: str) -> PreTrainedTokenizerFast:
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens([AddedToken(end, special=True, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=end,
        eos_token=end,
        pad_token=end,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def _byte_characters() -> list[str]:
    """The printable character that byte-level tokenizers write each byte as (GPT-2's table)."""
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in own else chr(next(others)) for byte in range(256)]
