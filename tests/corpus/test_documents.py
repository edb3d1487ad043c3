import pytest

from echo_ska.corpus.documents import TextSource, text_of


def test_a_text_file_is_a_document(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbftwo\r\n")
    (tmp_path / "a.md").write_text("one é")
    (tmp_path / "sub" / "empty.txt").touch()
    (tmp_path / "c.py").write_text("no text by its name")
    source = TextSource(tmp_path)
    assert [tuple(document) for document in source.documents()] == [
        ("one é", str(tmp_path / "a.md")),
        ("two\n", str(tmp_path / "b.txt")),
        ("", str(tmp_path / "sub" / "empty.txt")),  # passed over and counted by `prepare_corpus`
    ]
    assert source.describe() == {"kind": "text", "name": tmp_path.name, "files": 3, "bytes": 6 + 8}
    assert [document.text for document in TextSource(tmp_path / "a.md").documents()] == ["one é"]


def test_what_is_no_text_is_refused(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        TextSource(tmp_path / "absent")
    with pytest.raises(ValueError, match="holds no text"):
        TextSource(tmp_path)
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin.txt is not UTF-8 text: byte 0 is 0xe9"):
        list(TextSource(tmp_path).documents())


def test_the_field_of_a_row():
    assert text_of({"text": "a", "id": 3}, "text", "row 1") == "a"
    assert text_of({"text": None}, "text", "row 1") == ""
    with pytest.raises(ValueError, match=r"^row 1 has no field text, only body, id: name the field with the text"):
        text_of({"body": "a", "id": 3}, "text", "row 1")
    with pytest.raises(ValueError, match="has no field text, and no other either"):
        text_of({}, "text", "row 1")
    with pytest.raises(ValueError, match="row 1: the field id holds a value of type int, not a text"):
        text_of({"text": "a", "id": 3}, "id", "row 1")
