import hashlib

import pytest

from echo_ska.training import book_path, load_text
from echo_ska.training.books import BOOKS


@pytest.mark.parametrize("use", BOOKS)
def test_books_are_the_ones_described_and_clean_text(use):
    path = book_path(use)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert digest in (path.parent / "README.md").read_text(encoding="utf-8")
    [book] = load_text([path])
    assert len(book.tokens) > 300_000
    assert int(book.tokens.max()) < 128


def test_unknown_use_is_refused():
    with pytest.raises(ValueError, match="none for 'test'"):
        book_path("test")
