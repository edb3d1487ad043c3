import pytest
from fineweb import write_dataset

from echo_ska.corpus.sources import open_source


def test_names_stand_for_sources(tmp_path):
    for name in ("a.jsonl", "A.JSONL.GZ", "a.txt", "notes"):
        (tmp_path / name).touch()
    for name, kind in (("a.jsonl", "json lines"), ("A.JSONL.GZ", "json lines"), ("a.txt", "text"), ("notes", "text")):
        assert open_source(str(tmp_path / name)).describe()["kind"] == kind
    assert open_source(str(tmp_path)).describe()["files"] == 1
    with pytest.raises(ValueError, match=r"absent\.jsonl does not exist"):
        open_source(str(tmp_path / "absent.jsonl"))


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
    assert open_source(str(folder / "sample" / "10BT" / "000_00000.parquet")).describe()["kind"] == "parquet"
