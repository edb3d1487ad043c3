import dataclasses
import hashlib

import pytest

from echo_ska.corpus import TokenStream, verify_corpus, verify_shards
from echo_ska.corpus.index import read_index, write_index


def test_a_whole_corpus(bytes_corpus, bpe_corpus):
    for folder in (bytes_corpus, bpe_corpus):
        for verify in (verify_shards, verify_corpus):
            read = []
            index = verify(folder, lambda name, size, read=read: read.append((name, size)))
            assert index.complete
            written = sum(path.stat().st_size for path in folder.rglob("shard-*"))
            assert index.stored_bytes == sum(size for _, size in read) == written


def test_a_changed_byte_is_found(bytes_corpus):
    shards = sorted((bytes_corpus / "training").iterdir())
    for shard in shards:
        written = bytearray(shard.read_bytes())
        written[len(written) // 2] ^= 1
        shard.write_bytes(written)
        TokenStream(bytes_corpus)  # sizes are as they were: opening alone does not find it
        for verify in (verify_shards, verify_corpus):
            with pytest.raises(ValueError, match=f"is damaged: training/{shard.name} missing or not as written"):
                verify(bytes_corpus)
        written[len(written) // 2] ^= 1
        shard.write_bytes(written)
    verify_corpus(bytes_corpus)
    for shard in shards:
        shard.unlink()
    with pytest.raises(ValueError, match=rf"shard-00001.bin and {len(shards) - 3} more missing or not as written"):
        verify_corpus(bytes_corpus)


def test_an_id_beyond_the_vocabulary_is_found(bpe_corpus):
    index = read_index(bpe_corpus)
    first = index.splits["training"][0]
    path = bpe_corpus / "training" / first.files[0]
    path.write_bytes(b"\x2c\x01" + path.read_bytes()[2:])  # 300, and the ids end at 299
    forged = dataclasses.replace(first, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    splits = index.splits | {"training": (forged, *index.splits["training"][1:])}
    write_index(bpe_corpus, dataclasses.replace(index, splits=splits))
    assert verify_shards(bpe_corpus).complete  # as the index has it
    with pytest.raises(ValueError, match="holds the token id 300, and the tokenizer has 300"):
        verify_corpus(bpe_corpus)
