import pytest
import torch

from echo_ska.training import TextData, load_text, split_by_file


def write(folder, **contents):
    for name, content in contents.items():
        path = folder / name.replace("__", ".")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def test_folders_are_read_in_order_and_files_once(tmp_path):
    write(tmp_path, b__txt="two", a__md="one", c__py="not text by its name")
    (tmp_path / ".hidden").mkdir()
    write(tmp_path / ".hidden", d__txt="hidden")
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub", e__TXT="three")
    files = load_text([tmp_path, tmp_path / "b.txt", str(tmp_path / "c.py")])
    assert [file.path.name for file in files] == ["a.md", "b.txt", "e.TXT", "c.py"]
    assert all(file.tokens.dtype == torch.uint8 for file in files)
    assert bytes(files[0].tokens.tolist()) == b"one"


def test_byte_order_mark_and_crlf_are_normalised(tmp_path):
    write(tmp_path, a__txt=b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    assert bytes(load_text([tmp_path])[0].tokens.tolist()) == b"one\ntwo\rthree\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a.txt is empty"),
        (b"\xef\xbb\xbf", "a.txt is empty"),
        (b"fine \xff rest", "a.txt is not UTF-8 text: byte 5 is 0xff"),
        ("caf\u00e9".encode("latin-1"), "a.txt is not UTF-8 text: byte 3 is 0xe9"),
        ("hello".encode("utf-16"), "a.txt is not UTF-8 text: byte 0 starts a UTF-16 byte-order mark"),
        (b"ab\x00c", "a.txt is not text: byte 2 is NUL"),
    ],
)
def test_what_is_not_text_is_refused_with_its_path_and_offset(tmp_path, content, message):
    write(tmp_path, a__txt=content)
    with pytest.raises(ValueError, match=message):
        load_text([tmp_path])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "a.jsonl",
            r"a.jsonl holds rows \(JSON lines\), each a text of its own: `echo-ska data prepare` reads them, and",
        ),
        ("a.JSONL.gz", r"holds rows \(JSON lines\)"),
        ("a.ndjson", r"holds rows \(JSON lines\)"),
        ("a.parquet", r"a.parquet holds rows \(Parquet\).*; only where all of it is one text, rename it to \*.txt\.$"),
        (
            "a.json",
            r"a.json is JSON: where it has one object with its text a line, rename it to \*.jsonl, which `echo-ska",
        ),
        ("a.csv", r"a.csv is of no kind that is read: .* rename it to \*.txt\.$"),
        ("a.txt.zip", "is compressed or packed: unpack it first"),
    ],
)
def test_data_is_not_read_as_a_text_of_markup(tmp_path, name, message):
    (tmp_path / name).write_text("text\n" * 30)
    (tmp_path / "a.txt").write_text("text\n" * 30)
    with pytest.raises(ValueError, match=message):
        load_text([tmp_path / name])
    with pytest.raises(ValueError, match=message):
        split_by_file(load_text([tmp_path]), [tmp_path / name])
    assert [file.path.name for file in load_text([tmp_path])] == ["a.txt"]  # in a folder it is passed over, as ever
    (tmp_path / name).rename(tmp_path / "b.txt")
    assert len(load_text([tmp_path / "b.txt"])) == 1


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"missing.txt does not exist"):
        load_text([tmp_path / "missing.txt"])
    with pytest.raises(ValueError, match="holds no text"):
        load_text([tmp_path])
    with pytest.raises(ValueError, match="No text was given"):
        load_text([])


def test_split_holds_out_whole_files_whatever_their_order(tmp_path):
    write(tmp_path, **{f"f{i}__txt": f"text number {i}" for i in range(23)}, copy__txt="text number 4")
    files = load_text([tmp_path])
    training, held_out, description = split_by_file(files)
    assert len(training) + len(held_out) == 24
    assert 2 <= len(held_out) <= 3
    assert {file.path for file in training}.isdisjoint({file.path for file in held_out})
    texts = [{bytes(file.tokens.tolist()) for file in side} for side in (training, held_out)]
    assert texts[0].isdisjoint(texts[1])  # the copy went with its original
    assert held_out[0].path.name in description
    assert {file.path for file in split_by_file(files[::-1]).held_out} == {file.path for file in held_out}


def test_split_of_two_files_and_by_name(tmp_path):
    write(tmp_path, a__txt="one", b__txt="two")
    files = load_text([tmp_path])
    assert [len(side) for side in split_by_file(files)[:2]] == [1, 1]
    split = split_by_file(files, held_out=[tmp_path / "b.txt"])
    assert [file.path.name for file in split.held_out] == ["b.txt"]
    with pytest.raises(ValueError, match="leaves nothing to train on"):
        split_by_file(files, held_out=[tmp_path])
    write(tmp_path, c__txt="three")
    with pytest.raises(ValueError, match="none of the texts given"):
        split_by_file(files, held_out=[tmp_path / "c.txt"])


def test_copies_of_a_text_that_is_named_are_held_out_with_it(tmp_path):
    write(tmp_path, a__txt="one", b__txt="two", c__txt="one", d__txt="three")
    split = split_by_file(load_text([tmp_path]), held_out=[tmp_path / "a.txt"])
    assert [file.path.name for file in split.training] == ["b.txt", "d.txt"]
    assert [file.path.name for file in split.held_out] == ["a.txt", "c.txt"]
    assert split.description == "Held out as asked (with 1 copy): a.txt, c.txt."
    with pytest.raises(ValueError, match="leaves nothing to train on"):
        split_by_file(load_text([tmp_path / "a.txt", tmp_path / "c.txt"]), held_out=[tmp_path / "a.txt"])


def test_a_text_that_is_named_and_was_not_given_is_refused(tmp_path):
    write(tmp_path, a__txt="one", b__txt="two")
    (tmp_path / "other").mkdir()
    write(tmp_path / "other", c__txt="three", d__md="four")
    files = load_text([tmp_path / "a.txt", tmp_path / "b.txt"])
    with pytest.raises(ValueError, match=r"c\.txt is to be held out and is not one of the texts given: give it among"):
        split_by_file(files, held_out=[tmp_path / "a.txt", tmp_path / "other" / "c.txt"])
    with pytest.raises(
        ValueError, match=r"c\.txt is to be held out and is not one of the texts given \(nor are 1 more\)"
    ):
        split_by_file(files, held_out=[tmp_path / "a.txt", tmp_path / "other"])


def test_split_of_a_single_file_holds_out_its_end_between_characters(tmp_path):
    text = ("\u00e9" * 50).encode()
    write(tmp_path, a__txt=text)
    training, held_out, description = split_by_file(load_text([tmp_path]))
    parts = [bytes(side[0].tokens.tolist()) for side in (training, held_out)]
    assert parts[0] + parts[1] == text
    assert parts[1].decode() == "\u00e9" * 5
    assert "only one text" in description
    write(tmp_path, a__txt="short")
    with pytest.raises(ValueError, match="too short"):
        split_by_file(load_text([tmp_path]))


def test_windows_are_a_function_of_seed_and_step(tmp_path):
    write(tmp_path, a__txt="abcdefgh" * 20, b__txt="xyz")
    files = load_text([tmp_path])
    data = TextData(files, batch_size=64, length=16, seed=3)
    batch = data.batch(5)
    assert batch["input_ids"].shape == (64, 16)
    assert batch["input_ids"].dtype == torch.int64
    assert torch.equal(batch["input_ids"], batch["labels"])
    assert torch.equal(batch["input_ids"], TextData(files, 64, 16, seed=3).batch(5)["input_ids"])
    assert not torch.equal(batch["input_ids"], data.batch(6)["input_ids"])
    windows = {bytes(row) for step in range(20) for row in data.batch(step)["input_ids"].tolist()}
    assert b"cdefghabcdefghab" in windows
    assert any(window.endswith(b"\0xyz\0") for window in windows)  # short files are seen too
    assert any(b"h\0xyz" in window for window in windows)  # behind the end of another one, and nothing resets between
    assert batch.keys() == {"input_ids", "labels"}
    assert data.describe()["files"] == ["a.txt", "b.txt"]


def test_text_shorter_than_a_window_is_refused(tmp_path):
    write(tmp_path, a__txt="abc")
    with pytest.raises(ValueError, match="has 4 bytes, less than one window of 5"):
        TextData(load_text([tmp_path]), batch_size=1, length=5, seed=0)
