import json
import shutil

import pytest
from transformers import AutoTokenizer

from echo_ska.corpus import CorpusTokenizer

TEXT = "a<|endoftext|>b é🤖 the document"


def test_bytes():
    tokenizer = CorpusTokenizer("bytes")
    assert tokenizer.describe() == {"sha256": "bytes", "vocab_size": 256, "end_token": 0}
    assert [ids.tolist() for ids in tokenizer.encode([TEXT, "b"])] == [list(TEXT.encode()), [98]]
    assert tokenizer.text_bytes(tokenizer.encode([TEXT])[0]) == len(TEXT.encode())
    assert tokenizer.tokenizer.eos_token_id == 0


def test_a_folder(tokenizer_folder, tmp_path):
    tokenizer, same = CorpusTokenizer(str(tokenizer_folder)), AutoTokenizer.from_pretrained(tokenizer_folder)
    assert (tokenizer.vocab_size, tokenizer.end_token) == (300, same.eos_token_id)
    plain = TEXT.replace("<|endoftext|>", " ")
    encoded = tokenizer.encode([TEXT, plain])
    assert encoded[1].tolist() == same(plain, add_special_tokens=False)["input_ids"]
    assert tokenizer.end_token not in encoded[0]  # a text cannot end its own document
    assert same.decode(encoded[0].tolist()) == TEXT
    assert tokenizer.text_bytes(encoded[0]) == len(TEXT.encode())
    tokenizer.keep(tmp_path / "kept")
    assert CorpusTokenizer(str(tmp_path / "kept")).describe() == tokenizer.describe()


def test_folders_that_hold_none(tokenizer_folder, tmp_path):
    with pytest.raises(ValueError, match=r"holds no tokenizer \(tokenizer.json\): name bytes, or a folder"):
        CorpusTokenizer(str(tmp_path))
    shutil.copytree(tokenizer_folder, tmp_path / "endless")
    settings = json.loads((tmp_path / "endless" / "tokenizer_config.json").read_text())
    del settings["eos_token"]
    (tmp_path / "endless" / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="has no end token, so nothing would close a document"):
        CorpusTokenizer(str(tmp_path / "endless"))
    (tmp_path / "endless" / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be read"):
        CorpusTokenizer(str(tmp_path / "endless"))
