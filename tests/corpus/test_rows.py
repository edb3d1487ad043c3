import gzip
import json

import pytest
from fineweb import rows_of, write_dataset

from echo_ska.corpus.rows import JsonLinesSource, ParquetSource


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_json_lines(tmp_path, name):
    lines = [json.dumps({"body": text, "n": 1}, ensure_ascii=False) for text in ("one é", "", "three\n3")]
    written = "\ufeff" + "\n\n".join(lines)  # a byte-order mark, blank lines, none at the end
    with (gzip.open if name.endswith("gz") else open)(tmp_path / name, "wt", encoding="utf-8") as file:
        file.write(written)
    source = JsonLinesSource(tmp_path / name, "body")
    assert [document.text for document in source.documents()] == ["one é", "", "three\n3"]
    assert [document.origin.rpartition(", ")[2] for document in source.documents()] == ["line 1", "line 3", "line 5"]
    assert source.describe()["name"] == name


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"body": "x"}', r"line 2 has no field text, only body: name the field with the text \(--field\)"),
        (b'{"text": 3}', "line 2: the field text holds a value of type int, not a text"),
        (b'{"text": "x"', "line 2 is not JSON in UTF-8: Expecting"),
        (b'{"text": "\xe9"}', "line 2 is not JSON in UTF-8"),
        (b'["text"]', "line 2 is not a JSON object with fields, but of type list"),
        (b"[" * 100_000, "line 2 is not JSON in UTF-8"),
    ],
)
def test_lines_that_are_none(tmp_path, line, words):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "fine"}\n' + line)
    documents = JsonLinesSource(tmp_path / "a.jsonl", "text").documents()
    assert next(documents).text == "fine"
    with pytest.raises(ValueError, match=words):
        next(documents)


def test_a_damaged_gzip_file(tmp_path):
    whole = gzip.compress(b'{"text": "fine"}\n' * 1000)
    for written in (whole[:-20], b"no gzip at all", whole[:20] + b"\xff\xff" + whole[22:]):
        (tmp_path / "a.jsonl.gz").write_bytes(written)
        with pytest.raises(ValueError, match="is not a whole gzip file"):
            list(JsonLinesSource(tmp_path / "a.jsonl.gz", "text").documents())


def test_parquet(tmp_path):
    pytest.importorskip("pyarrow", reason="pip install 'echo-ska[data]'")
    path = write_dataset(tmp_path / "d") / "sample" / "10BT" / "001_00000.parquet"
    source = ParquetSource(path, "text")
    assert [document.text for document in source.documents()] == rows_of(10, 20)["text"]
    assert [document.origin for document in source.documents()][9] == f"{path}, row 9"
    assert source.describe()["rows"] == 10
    with pytest.raises(ValueError, match=r"parquet has no field body, only text, id, dump"):
        ParquetSource(path, "body")
    with pytest.raises(ValueError, match="the column token_count is of type int64, not of text"):
        ParquetSource(path, "token_count")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        ParquetSource(path, "text")


def test_parquet_of_other_kinds_of_text(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pip install 'echo-ska[data]'")
    parquet = pytest.importorskip("pyarrow.parquet")
    views = [pyarrow.string_view()] if hasattr(pyarrow, "string_view") else []
    for kind in (pyarrow.large_string(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string()), *views):
        parquet.write_table(pyarrow.table({"text": pyarrow.array(["a", None, "a"], kind)}), tmp_path / "a.parquet")
        texts = [document.text for document in ParquetSource(tmp_path / "a.parquet", "text").documents()]
        assert texts == ["a", "", "a"]


def test_a_column_of_parquet_is_told_from_others_of_its_name(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pip install 'echo-ska[data]'")
    parquet = pytest.importorskip("pyarrow.parquet")
    path, inside, flat = tmp_path / "a.parquet", pyarrow.array([{"text": "inside"}] * 3), pyarrow.array(["flat"] * 3)
    for columns in ({"meta": inside, "meta.text": flat}, {"meta.text": flat, "meta": inside}):
        parquet.write_table(pyarrow.table(columns), path)
        assert [document.text for document in ParquetSource(path, "meta.text").documents()] == ["flat"] * 3
        with pytest.raises(ValueError, match="the column meta is of type struct"):
            ParquetSource(path, "meta")
    parquet.write_table(pyarrow.Table.from_arrays([flat, flat], names=["text", "text"]), path)
    with pytest.raises(ValueError, match=r"a.parquet has 2 columns of the name text: write it with one"):
        ParquetSource(path, "text")


def test_a_row_of_parquet_that_is_not_utf8_is_named(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pip install 'echo-ska[data]'")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = pyarrow.array([b"good"] * 300 + [b"b\xe9d", b"good"], pyarrow.binary()).view(pyarrow.string())
    for column in (texts, texts.dictionary_encode()):
        parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
        documents = ParquetSource(tmp_path / "a.parquet", "text").documents()
        assert [next(documents).text for _ in range(300)] == ["good"] * 300
        with pytest.raises(
            ValueError, match=r"a.parquet, row 300 is not UTF-8 text: byte 1 is 0xe9 \(.*\); convert it"
        ):
            next(documents)


def test_parquet_that_breaks_inside(tmp_path):
    pytest.importorskip("pyarrow", reason="pip install 'echo-ska[data]'")
    path = write_dataset(tmp_path / "d") / "sample" / "10BT" / "000_00000.parquet"
    source = ParquetSource(path, "text")
    whole = path.read_bytes()
    path.write_bytes(b"PAR1" + b"\xff" * 600 + whole[604:])
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        list(source.documents())
