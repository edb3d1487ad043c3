import random

import pytest

from echo_ska.evaluation.streaming import MOST_HELD, TextStream
from echo_ska.models import byte_tokenizer, train_bpe

TEXT = "Zażółć 🤖👩‍👩‍👧‍👦 the cat sat  on the mat\n\n日本語 e\u0301 the cat "


@pytest.fixture(params=["bytes", "bpe"])
def tokenizer(request, tmp_path):
    if request.param == "bytes":
        return byte_tokenizer()
    (tmp_path / "t.txt").write_text("the cat sat on the mat 日本 " * 30, encoding="utf-8")
    return train_bpe([tmp_path / "t.txt"], 290)


def test_pieces_are_whole_characters_and_join_to_the_text(tokenizer):
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in tokenizer(TEXT)["input_ids"]]
    assert "".join(pieces) + stream.close() == TEXT
    assert not any("\ufffd" in piece for piece in pieces)
    assert len([piece for piece in pieces if piece]) > len(TEXT) / 4  # as they come, not at the end


def test_what_is_no_text_comes_out_too():
    tokenizer = byte_tokenizer()
    stream = TextStream(tokenizer)
    pieces = [stream.push(0xFF) for _ in range(2 * MOST_HELD)]
    assert "".join(pieces) + stream.close() == "\ufffd" * 2 * MOST_HELD
    noise = random.Random(0).choices(range(1, 256), k=500)
    assert "".join(map(stream.push, noise)) + stream.close() == bytes(noise).decode("utf-8", errors="replace")


def streamed(tokenizer, tokens):
    stream = TextStream(tokenizer)
    return [*map(stream.push, tokens), stream.close()]


def by_byte(tokenizer, raw):
    """A token for each byte; the special one for NUL."""
    names = byte_tokenizer().convert_ids_to_tokens(list(raw))
    return [tokenizer.convert_tokens_to_ids(name) if byte else 0 for byte, name in zip(raw, names, strict=True)]


def test_a_character_after_much_that_is_no_text_is_whole():
    tokenizer = byte_tokenizer()
    for count in range(3 * MOST_HELD):
        for after in ("😀ok", "😀", "é", "\ufffd\ufffd", "😀" * 20):
            tokens = [*[0xFF] * count, *after.encode()]
            assert "".join(streamed(tokenizer, tokens)) == "\ufffd" * count + after


@pytest.mark.parametrize("seed", range(40))
def test_pieces_join_to_the_text_whatever_the_tokens_are(tokenizer, seed):
    draw = random.Random(seed)
    # Unfinished characters, bytes that begin and continue characters, whole characters, special tokens.
    sources = [b"\xff", b"\xf0\x9f", b"\xf0\x9f\x98", b"\x80", b"\xe2", "😀é\ufffd日".encode(), b"the cat", b"\0"]
    likely = [draw.random() ** 3 for _ in sources]
    noise = b"".join(draw.choices(sources, likely, k=120))
    for tokens in (draw.choices(range(len(tokenizer)), k=300), by_byte(tokenizer, noise)):
        assert "".join(streamed(tokenizer, tokens)) == tokenizer.decode(tokens, skip_special_tokens=True)


def test_what_is_no_text_comes_as_it_is_written():
    pieces = streamed(byte_tokenizer(), [0xFF] * 1000)
    assert all(len("".join(pieces[:at])) >= at - MOST_HELD for at in range(1000))


def test_a_cut_character_is_closed_and_special_tokens_are_left_out():
    stream = TextStream(byte_tokenizer())
    assert [stream.push(token) for token in (ord("a"), 0, 0xE2, 0x82)] == ["a", "", "", ""]
    assert stream.close() == "\ufffd"
