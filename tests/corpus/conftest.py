"""A small corpus, made anew for each test."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from echo_ska.corpus import CorpusSettings, prepare_corpus
from echo_ska.models import train_bpe

sys.path.insert(0, str(Path(__file__).parent))  # for `fineweb` and `sentences`
from sentences import sentence


@pytest.fixture
def rows(tmp_path):
    """A file of 60 documents."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": sentence(number), "id": number}) + "\n" for number in range(60)))
    return path


@pytest.fixture
def bytes_corpus(rows, tmp_path):
    """In several shards a split."""
    prepare_corpus([str(rows)], tmp_path / "corpus", CorpusSettings(held_out=0.2, shard_tokens=900))
    return tmp_path / "corpus"


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    """Byte pairs."""
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "text.txt").write_text(" ".join(map(sentence, range(60))))
    train_bpe([folder / "text.txt"], 300).save_pretrained(folder / "kept")
    return folder / "kept"


@pytest.fixture
def bpe_corpus(rows, tokenizer_folder, tmp_path):
    """The same documents in byte pairs."""
    settings = CorpusSettings(str(tokenizer_folder), held_out=0.2, shard_tokens=900)
    prepare_corpus([str(rows)], tmp_path / "bpe", settings)
    return tmp_path / "bpe"
