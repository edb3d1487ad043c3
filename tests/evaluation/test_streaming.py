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


def test_a_cut_character_is_closed_and_special_tokens_are_left_out():
    stream = TextStream(byte_tokenizer())
    assert [stream.push(token) for token in (ord("a"), 0, 0xE2, 0x82)] == ["a", "", "", ""]
    assert stream.close() == "\ufffd"
