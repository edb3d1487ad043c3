import json
import shutil

import numpy as np
import pytest
from sentences import sentence
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from echo_ska.corpus import CorpusTokenizer
from echo_ska.corpus import tokenizer as tokenizer_module

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


def test_what_is_kept_is_of_one_tokenizer(tokenizer_folder, tmp_path):
    def files():
        return {path.name: path.read_bytes() for path in (tmp_path / "kept").iterdir()}

    wordpiece(tmp_path / "kept")
    (tmp_path / "kept" / "special_tokens_map.json").write_text("{}")
    (tmp_path / "plain").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer_folder / name, tmp_path / "plain" / name)
    CorpusTokenizer(str(tmp_path / "plain")).keep(tmp_path / "kept")
    assert files() == {path.name: path.read_bytes() for path in (tmp_path / "plain").iterdir()}
    before = files()
    CorpusTokenizer(str(tmp_path / "kept")).keep(tmp_path / "plain" / ".." / "kept")  # the folder that it is in
    assert files() == before


@pytest.fixture
def classless(tokenizer_folder, tmp_path):
    """Laid out as GPT-2's on the hub: its class, and with it the end token, follows from the model's kind alone."""
    folder = tmp_path / "gpt2"
    folder.mkdir()
    shutil.copy(tokenizer_folder / "tokenizer.json", folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 1024}))
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_layer": 12, "auto_map": {}}))
    return folder


def test_the_copy_has_the_class_that_a_model_chose(classless, tmp_path):
    tokenizer = CorpusTokenizer(str(classless))
    tokenizer.require_copy_alike()
    tokenizer.keep(tmp_path / "kept")
    kept = CorpusTokenizer(str(tmp_path / "kept"))
    assert kept.describe() == tokenizer.describe()
    assert type(kept.tokenizer) is type(tokenizer.tokenizer)
    assert json.loads((tmp_path / "kept" / "config.json").read_text()) == {"model_type": "gpt2"}
    kept.keep(tmp_path / "again")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "kept" / name).read_bytes()


def test_a_tokenizer_whose_copy_is_another_is_refused(classless, monkeypatch):
    tokenizer = CorpusTokenizer(str(classless))
    monkeypatch.setattr(tokenizer_module, "CHOOSING", ())
    with pytest.raises(
        ValueError, match=r"is not read as the same tokenizer, .*: save it with save_pretrained in another"
    ):
        tokenizer.require_copy_alike()


def wordpiece(folder):
    """A tokenizer that is not of bytes: words of one text, and their ends."""
    inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=["[UNK]", "[SEP]"], show_progress=False)
    inner.train_from_iterator([sentence(number) for number in range(60)], trainer)
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="[SEP]").save_pretrained(folder)
    return folder


SPECIAL = ["<pad>", "</s>", "<unk>"]
LETTERS = list("▁abcdefghijklmnopqrstuvwxyz</>")


def ending_inside(kind):
    """Tokenizers of which the end token, id 1, is also a piece that a text can become."""
    words = {piece: number for number, piece in enumerate([*SPECIAL, *LETTERS])}
    if kind == "WordLevel":
        inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
        inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    elif kind == "WordPiece":
        inner = Tokenizer(models.WordPiece(words | {"##/s>": len(words)}, unk_token="<unk>"))
        inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    elif kind == "BPE":
        pieces = {piece: number for number, piece in enumerate([*SPECIAL, *LETTERS, "</", "</s"])}
        inner = Tokenizer(models.BPE(pieces, [("<", "/"), ("</", "s"), ("</s", ">")], unk_token="<unk>"))
        inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    else:
        pieces = [(piece, 0.0) for piece in SPECIAL] + [(piece, -3.0) for piece in LETTERS]
        inner = Tokenizer(models.Unigram(pieces, unk_id=2))
        inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return inner


@pytest.mark.parametrize("kind", ["Unigram", "WordLevel", "WordPiece", "BPE"])
def test_no_text_becomes_the_end_token_that_is_a_piece_of_the_vocabulary(tmp_path, kind):
    inner = ending_inside(kind)
    assert 1 in inner.encode("a </s> b", add_special_tokens=False).ids
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="<unk>").save_pretrained(tmp_path)
    tokenizer = CorpusTokenizer(str(tmp_path))
    assert tokenizer.end_token == 1
    texts = ["a b", "a </s> b", "</s>", "b a"]
    encoded = [ids.tolist() for ids in tokenizer.encode(texts)]
    assert all(1 not in ids for ids in encoded)
    for place in (0, 3):
        assert encoded[place] == inner.encode(texts[place], add_special_tokens=False).ids
    if kind in ("Unigram", "BPE"):
        assert tokenizer.tokenizer.decode(encoded[1]) == "a </s> b"
    if kind == "WordLevel":
        assert encoded[1] == [encoded[0][0], 2, encoded[0][1]]


def test_an_end_token_for_what_is_unknown_is_refused_where_a_text_has_something_unknown(tmp_path):
    inner = ending_inside("WordLevel")
    inner.model = models.WordLevel(json.loads(inner.to_str())["model"]["vocab"], unk_token="</s>")
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>").save_pretrained(tmp_path)
    tokenizer = CorpusTokenizer(str(tmp_path))
    assert len(tokenizer.encode(["a b a"])[0]) == 3
    with pytest.raises(
        ValueError, match=r"writes what it does not know as its end token, .*: choose one with an unknown"
    ):
        tokenizer.encode(["a b", "unknown words"])


def test_dropout_does_not_draw_what_a_text_becomes(tokenizer_folder, tmp_path):
    shutil.copytree(tokenizer_folder, tmp_path / "dropping")
    definition = json.loads((tokenizer_folder / "tokenizer.json").read_text())
    definition["model"]["dropout"] = 0.5
    (tmp_path / "dropping" / "tokenizer.json").write_text(json.dumps(definition))
    texts = [sentence(number) for number in range(10)]
    plain, dropping = CorpusTokenizer(str(tokenizer_folder)), CorpusTokenizer(str(tmp_path / "dropping"))
    assert [ids.tolist() for ids in dropping.encode(texts)] == [ids.tolist() for ids in plain.encode(texts)]
    assert dropping.tokenizer.backend_tokenizer.model.dropout == 0.5  # what is kept beside a model stays as it was


def test_tokens_within_so_many_bytes(tokenizer_folder, tmp_path):
    for name in ("bytes", str(tokenizer_folder), str(wordpiece(tmp_path / "words"))):
        tokenizer = CorpusTokenizer(name)
        [ids] = tokenizer.encode([" ".join(map(sentence, range(3)))])
        sizes = [tokenizer.text_bytes(ids[:count]) for count in range(len(ids) + 1)]
        for count, size in enumerate(sizes):
            text = tokenizer.tokenizer.decode(ids[:count].tolist(), clean_up_tokenization_spaces=False)
            if "\ufffd" not in text:  # of a cut character
                assert size == len(text.encode())
        for most in (0, 1, 5, 50, 51, sizes[-1], sizes[-1] + 1):
            kept = tokenizer.within(ids, most)
            assert kept.tolist() == ids[: len(kept)].tolist()
            assert sizes[len(kept)] <= most
            assert len(kept) == len(ids) or sizes[len(kept) + 1] > most


def test_a_cut_inside_a_character_counts_its_bytes(tokenizer_folder):
    tokenizer = CorpusTokenizer(str(tokenizer_folder))
    [ids] = tokenizer.encode(["🤖"])
    assert len(ids) == 2  # this text's own pairs of bytes
    assert [tokenizer.text_bytes(ids[:count]) for count in range(3)] == [0, 2, 4]
    assert tokenizer.text_bytes(np.array([tokenizer.end_token])) == len("<|endoftext|>")


def test_the_space_that_a_tokenizer_adds_is_no_byte_of_the_text(tmp_path):
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(["hello world, some words"] * 9, trainer)
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>").save_pretrained(tmp_path)
    tokenizer = CorpusTokenizer(str(tmp_path))
    for text in ("hello world", "\nhello", "é🤖", "x", " hello world", "  hello"):
        [ids] = tokenizer.encode([text])
        own = tokenizer.own_space(ids, len(text.encode()))
        assert own == text.startswith(" ")
        assert tokenizer.text_bytes(ids) + own == len(text.encode())
        assert tokenizer.text_bytes(ids[:0]) == 0
        for most in range(len(text.encode()) + 2):
            kept = tokenizer.within(ids, most)
            assert tokenizer.text_bytes(kept) <= most
            assert len(kept) == len(ids) or tokenizer.text_bytes(ids[: len(kept) + 1]) > most
    assert tokenizer.encode(["hello world"])[0].tolist() == tokenizer.encode([" hello world"])[0].tolist()


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
