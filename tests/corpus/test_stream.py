import json
import subprocess
import sys

import numpy as np
import pytest

from echo_ska.corpus import CorpusSettings, TokenStream, prepare_corpus, read_index


def test_the_tokens_are_one_row_over_all_shards(bytes_corpus):
    stream, index = TokenStream(bytes_corpus), read_index(bytes_corpus)
    written = b"".join((bytes_corpus / "training" / shard.files[0]).read_bytes() for shard in index.splits["training"])
    assert bytes(stream.read(0, stream.tokens).tolist()) == written
    assert stream.tokens == len(written) == index.total("training", "tokens")
    bound = index.splits["training"][0].tokens
    for start, count in ((0, 0), (0, 1), (bound - 2, 5), (bound, 3), (bound - 1, 1), (stream.tokens - 3, 3)):
        assert bytes(stream.read(start, count).tolist()) == written[start : start + count]
        assert stream.read(start, count).dtype == np.int64
    for start, count in ((-1, 2), (stream.tokens, 1), (0, stream.tokens + 1)):
        with pytest.raises(ValueError, match="There are tokens 0 to"):
            stream.read(start, count)


def test_where_documents_begin(bytes_corpus):
    stream = TokenStream(bytes_corpus)
    tokens = stream.read(0, stream.tokens)
    begins = np.concatenate([[0], np.flatnonzero(tokens == 0)[:-1] + 1])  # after each end token but the last
    assert len(begins) == stream.documents
    assert stream.starts(0, stream.tokens).tolist() == begins.tolist()
    for start in range(0, stream.tokens - 70, 13):
        inside = begins[(begins >= start) & (begins < start + 70)] - start
        assert stream.starts(start, 70).tolist() == inside.tolist()
    lengths = [len(stream.document(number)[0]) + 1 for number in range(stream.documents)]
    assert lengths == np.diff([*begins, stream.tokens]).tolist()
    for number in (-1, stream.documents):
        with pytest.raises(IndexError, match="There are documents 0 to"):
            stream.document(number)


def test_a_split_is_known_by_its_contents(bytes_corpus, bpe_corpus):
    described = [
        TokenStream(folder, split).describe()
        for folder in (bytes_corpus, bpe_corpus)
        for split in ("training", "held-out")
    ]
    assert len({one["sha256"] for one in described}) == 4
    assert described[0] == TokenStream(bytes_corpus).describe()
    assert described[0]["tokenizer"] == "bytes"


def test_what_cannot_be_opened(bytes_corpus, tmp_path):
    with pytest.raises(ValueError, match="split must be one of training, held-out, got 'test'"):
        TokenStream(bytes_corpus, "test")
    with pytest.raises(ValueError, match=r"absent is no folder \(index.json\): name one that `echo-ska data prepare`"):
        TokenStream(tmp_path / "absent")
    with pytest.raises(ValueError, match="holds no corpus"):
        TokenStream(tmp_path)
    documents = bytes_corpus / "training" / "shard-00001.documents.bin"
    documents.write_bytes(documents.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"shard-00001.documents.bin has \d+ bytes, not the \d+ written: take another"):
        TokenStream(bytes_corpus)
    TokenStream(bytes_corpus, "held-out")
    (bytes_corpus / "held-out" / "shard-00000.bin").unlink()
    with pytest.raises(ValueError, match=r"shard-00000.bin is missing"):
        TokenStream(bytes_corpus, "held-out")
    index = bytes_corpus / "index.json"
    index.write_bytes(index.read_bytes().replace(b'"complete": true', b'"complete": null'))
    with pytest.raises(ValueError, match=r"index.json does not match its checksum"):
        TokenStream(bytes_corpus)


def test_more_shards_than_a_process_may_open_files(tmp_path, monkeypatch):
    pytest.importorskip("resource", reason="needs a limit on open files")
    for module in ("corpus.writer", "sealed.folder"):
        monkeypatch.setattr(f"echo_ska.{module}.flush", lambda path: None)  # hundreds of times it takes seconds
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": f"row {number}"}) + "\n" for number in range(300)))
    settings = CorpusSettings(held_out=0, shard_tokens=1)
    index = prepare_corpus([str(tmp_path / "rows.jsonl")], tmp_path / "corpus", settings)
    assert len(index.splits["training"]) == 300
    script = """
import resource, sys
from echo_ska.corpus import TokenStream
resource.setrlimit(resource.RLIMIT_NOFILE, (128, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
stream = TokenStream(sys.argv[1])
for number in [*range(300), *range(299, -1, -7)]:
    assert bytes(stream.document(number)[0].tolist()).decode() == f"row {number}"
print(bytes(stream.read(0, stream.tokens).tolist()).decode().count("\\0"), len(stream.starts(0, stream.tokens)))
"""
    read = subprocess.run([sys.executable, "-c", script, tmp_path / "corpus"], capture_output=True, text=True)
    assert (read.returncode, read.stdout.split()) == (0, ["300", "300"]), read.stderr


def test_a_shard_that_shrinks_while_the_stream_is_open_is_named(bytes_corpus, monkeypatch):
    monkeypatch.setattr("echo_ska.corpus.stream._files_to_map", lambda: 1)
    stream = TokenStream(bytes_corpus)
    stream.read(0, 1)
    last = sorted((bytes_corpus / "training").glob("shard-*[0-9].bin"))[-1]
    last.write_bytes(last.read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"{last.name} has \d+ bytes, not the \d+ written: take another"):
        stream.read(0, stream.tokens)
