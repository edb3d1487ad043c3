import json

import pytest

from echo_ska.corpus.index import read_index, token_dtype, write_index


def test_the_smallest_type_that_holds_the_vocabulary():
    sizes = {256: "uint8", 257: "uint16", 65_536: "uint16", 65_537: "uint32", 200_000: "uint32"}
    assert {size: token_dtype(size).name for size in sizes} == sizes
    assert token_dtype(300).byteorder in "<="


def test_what_is_written_is_read(bytes_corpus):
    index = read_index(bytes_corpus)
    written = (bytes_corpus / "index.json").read_bytes()
    write_index(bytes_corpus, index)
    assert (bytes_corpus / "index.json").read_bytes() == written
    assert json.loads(written)["dtype"] == "|u1"
    assert not list(bytes_corpus.glob(".partial-*"))


def test_the_tokenizer_is_the_one_it_was_made_with(bpe_corpus):
    index = read_index(bpe_corpus)
    assert index.open_tokenizer(bpe_corpus).vocab_size == 300
    kept = bpe_corpus / "tokenizer" / "tokenizer.json"
    kept.write_text(kept.read_text().replace('"version"', '"version" '))
    with pytest.raises(ValueError, match="is not the tokenizer that the corpus was made with"):
        index.open_tokenizer(bpe_corpus)
    kept.unlink()
    with pytest.raises(ValueError, match="holds no tokenizer"):
        index.open_tokenizer(bpe_corpus)
