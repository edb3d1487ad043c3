import gzip

import pytest
from fineweb import write_dataset

from echo_ska.corpus.sources import open_source, passed_over


def test_names_stand_for_sources(tmp_path):
    for name in ("a.jsonl", "A.JSONL.GZ", "a.ndjson", "a.txt", "notes"):
        (tmp_path / name).touch()
        kind = "json lines" if "json" in name.lower() else "text"
        assert open_source(str(tmp_path / name)).describe()["kind"] == kind
    with pytest.raises(ValueError, match=r"absent\.jsonl does not exist"):
        open_source(str(tmp_path / "absent.jsonl"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "train.json",
            r"is JSON: where it has one object with its text a line, rename it to \*.jsonl",
        ),
        (
            "TRAIN.CSV",
            r"is of no kind that is read: write its documents as \*.jsonl \(one object with",
        ),
        ("books.xml", r"is of no kind that is read: .* rename it to \*.txt"),
        ("a.txt.gz", r"is compressed or packed: unpack it first; only \*.jsonl.gz is read as it is"),
        ("a.jsonl.zst", "is compressed or packed"),
    ],
)
def test_data_that_would_be_one_document_of_markup(tmp_path, name, words):
    (tmp_path / name).write_text('{"text": "one"}\n{"text": "two"}\n')
    with pytest.raises(ValueError, match=f"{name} {words}"):
        open_source(str(tmp_path / name))


def test_a_folder_of_rows_is_read_whole(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".cache").mkdir()
    for place in ("sub", ".cache"):
        with gzip.open(tmp_path / place / "b.jsonl.gz", "wt") as file:
            file.write('{"body": "in a subfolder"}\n')
    (tmp_path / "a.jsonl").write_text('{"body": "one"}\n{"body": "two"}\n')
    (tmp_path / "notes.csv").touch()
    source = open_source(str(tmp_path), "body")
    assert [document.text for document in source.documents()] == ["one", "two", "in a subfolder"]
    size = sum((tmp_path / name).stat().st_size for name in ("a.jsonl", "sub/b.jsonl.gz"))
    assert source.describe() == {"kind": "json lines", "name": tmp_path.name, "files": 2, "bytes": size}
    assert passed_over(str(tmp_path)) == [tmp_path / "notes.csv"]
    assert passed_over(str(tmp_path / "a.jsonl")) == passed_over("hub:a/b") == []


def test_a_file_found_twice_is_read_once(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n')
    try:
        (tmp_path / "again.jsonl").symlink_to(tmp_path / "a.jsonl")
    except OSError:
        pytest.skip("no symbolic links here")
    assert [document.text for document in open_source(str(tmp_path)).documents()] == ["one"]


def test_a_folder_of_text_is_as_it_was(tmp_path):
    (tmp_path / "b.txt").write_text("two")
    (tmp_path / "A.MD").write_text("one")
    (tmp_path / "c.py").touch()
    source = open_source(str(tmp_path))
    assert [document.text for document in source.documents()] == ["one", "two"]
    assert source.describe() == {"kind": "text", "name": tmp_path.name, "files": 2, "bytes": 6}
    assert passed_over(str(tmp_path)) == [tmp_path / "c.py"]


def test_a_folder_is_of_one_kind(tmp_path):
    with pytest.raises(ValueError, match=r"holds no documents: no \*.txt, \*.md, \*.jsonl, \*.jsonl.gz, \*.ndjson, "):
        open_source(str(tmp_path))
    for name in ("README.md", "a.jsonl", "b.JSONL.GZ", "c.parquet"):
        (tmp_path / name).touch()
    kinds = r"1 of text \(README.md\), 2 of JSON lines \(a.jsonl\), 1 of Parquet \(c.parquet\): name the files"
    with pytest.raises(ValueError, match=f"holds files of several kinds, {kinds}"):
        open_source(str(tmp_path))


def test_rows_by_libraries_that_may_be_missing(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").touch()
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    for name in (str(tmp_path / "a.parquet"), "hub:a/b"):
        with pytest.raises(ValueError, match=r"pip install 'echo-ska\[data\]'"):
            open_source(name)


def test_parquet_and_datasets(tmp_path):
    pytest.importorskip("datasets", reason="pip install 'echo-ska[data]'")
    folder = write_dataset(tmp_path / "d")
    assert open_source(f"hub:{folder}:sample-10BT").describe()["kind"] == "hub"
    parts = folder / "sample" / "10BT"
    files = [open_source(str(path)) for path in sorted(parts.glob("*.parquet"))]
    whole = open_source(str(parts))
    assert len(files) > 1
    assert list(whole.documents()) == [document for file in files for document in file.documents()]
    described = [file.describe() for file in files]
    assert whole.describe() == {"kind": "parquet", "name": "10BT", "files": len(files)} | {
        count: sum(one[count] for one in described) for count in ("rows", "bytes")
    }
