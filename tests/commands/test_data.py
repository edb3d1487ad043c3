"""`echo-ska data`."""

from __future__ import annotations

import json
import os

import pytest

from echo_ska.commands import data as data_module
from echo_ska.commands import rare_lines


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"Row {n} [red]. " * (n % 9), "n": n}) + "\n" for n in range(60)))
    return path


@pytest.fixture
def prepare(rows, tmp_path):
    return ["data", "prepare", rows, "--output", tmp_path / "corpus", "--held-out=0.2", "--shard-tokens=800"]


def test_a_corpus_is_prepared_shown_and_verified(run, prepare, tmp_path):
    result = run(*prepare, "--json", tmp_path / "prepared.json")
    assert result.exit_code == 0, result.output
    assert f"`echo-ska train --data {tmp_path / 'corpus'}` learns it" in result.stdout
    assert "Documents skipped: 7 empty, 0 not text." in result.stdout
    figures = json.loads((tmp_path / "prepared.json").read_text())
    assert figures["splits"]["training"]["documents"] + figures["splits"]["held-out"]["documents"] == 53
    assert figures["splits"]["training"]["shards"] > 1
    assert figures["dtype"] == "uint8"
    shown = run("data", "show", tmp_path / "corpus", "--json", tmp_path / "shown.json")
    assert shown.exit_code == 0
    assert f"{figures['splits']['training']['tokens']:,}" in shown.stdout
    assert "Source, json lines: " in shown.stdout
    assert json.loads((tmp_path / "shown.json").read_text()) == figures
    verified = run("data", "verify", tmp_path / "corpus")
    assert verified.exit_code == 0
    assert "is whole: " in verified.stdout
    assert run(*prepare).exit_code == 0  # again: nothing to do


def test_sources_that_were_written_to_are_read_once_more_and_that_is_said(run, prepare, rows):
    assert "once more" not in run(*prepare).stdout
    assert "once more" not in run(*prepare).stdout
    os.utime(rows, (1_000_000_000, 1_000_000_000))
    result = run(*prepare)
    assert result.exit_code == 0
    assert "sources' files have been written to since: reading" in " ".join(result.stdout.split())
    assert "Going on" not in result.stdout
    assert "once more" not in run(*prepare).stdout
    rows.write_text(rows.read_text().replace("1", "2"))
    os.utime(rows, (1_000_000_000, 1_000_000_001))
    result = run(*prepare)
    assert result.exit_code == 1
    assert "are not what they were when it was prepared" in " ".join(result.stderr.split())


def test_a_stopped_preparation_goes_on(run, prepare, tmp_path, monkeypatch):
    real = data_module.prepare_corpus

    def stopped(sources, directory, settings, progress):
        def stop(done):
            raise KeyboardInterrupt

        return real(sources, directory, settings, stop)

    monkeypatch.setattr(data_module, "prepare_corpus", stopped)
    result = run(*prepare)
    assert result.exit_code == 130
    assert "give the same command again to go on" in result.stderr
    assert "It is not complete" in run("data", "show", tmp_path / "corpus").stdout
    assert "It is not complete" in run("data", "verify", tmp_path / "corpus").stdout
    monkeypatch.setattr(data_module, "prepare_corpus", real)
    result = run(*prepare)
    assert result.exit_code == 0
    assert "Going on after " in result.stdout
    assert run(*prepare[:4], tmp_path / "whole", *prepare[5:]).exit_code == 0
    for name in ("index.json", "training/shard-00001.bin", "held-out/shard-00000.documents.bin"):
        assert (tmp_path / "corpus" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_lines_say_how_far_it_is(run, prepare, tmp_path, monkeypatch):
    monkeypatch.setattr(rare_lines, "LINE_SECONDS", 0.0)
    assert "60 documents, " in run(*prepare).stdout
    verified = " ".join(run("data", "verify", tmp_path / "corpus").stdout.split())
    assert verified.count("Verifying the corpus: ") > 2
    assert " are as written. " in verified


def test_a_folder_of_rows_and_what_is_passed_over_in_it(run, refused, rows, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    rows.rename(folder / "a.jsonl")
    size = (folder / "a.jsonl").stat().st_size
    for number in range(4):
        (folder / f"table-{number}.csv").touch()
    result = run("data", "prepare", folder, "-o", tmp_path / "corpus", "--held-out=0.2")
    assert result.exit_code == 0, result.output
    said = "4 files of no kind that is read (table-0.csv, table-1.csv, table-2.csv, ...)."
    assert f"Passed over in {folder}: {said}" in result.stdout
    assert f"Source, json lines: bytes {size}, files 1, name folder." in run("data", "show", tmp_path / "corpus").stdout
    for path in folder.glob("*.csv"):
        path.unlink()
    assert "Passed over" not in run("data", "prepare", folder, "-o", tmp_path / "corpus", "--held-out=0.2").stdout
    (folder / "README.md").write_text("what it is")
    refused("files of several kinds, 1 of text (README.md), 1 of", "data", "prepare", folder, "-o", tmp_path / "c")


def test_byte_pairs(run, rows, tmp_path):
    (tmp_path / "a.txt").write_text("Row 1 [red]. Row 2 [red]. " * 20)
    assert run("tokenizer", "train", tmp_path / "a.txt", "--vocab-size=265", "-o", tmp_path / "tok").exit_code == 0
    result = run("data", "prepare", rows, "-o", tmp_path / "c", "--tokenizer", tmp_path / "tok", "--held-out=0.2")
    assert result.exit_code == 0, result.output
    assert "Tokenizer: 265 tokens, " in result.stdout
    assert "uint16" in result.stdout


def test_what_is_refused(refused, run, prepare, rows, tmp_path):
    refused("rows.jsonl, line 1 has no field body, only text, n: name the field", *prepare, "--field=body")
    refused("does not exist", "data", "prepare", tmp_path / "absent", "-o", tmp_path / "c")
    refused("--held-out 1e-09: choose a larger part", *prepare[:-1], "--held-out=1e-9")
    refused("held_out must be a part", *prepare, "--held-out=1.5")
    refused("holds no tokenizer", *prepare, "--tokenizer", tmp_path)
    refused("is a file", "data", "prepare", rows, "-o", rows)
    refused("names no dataset", "data", "prepare", "hub:", "-o", tmp_path / "c")
    refused("holds no corpus", "data", "show", tmp_path)
    refused("is no folder", "data", "verify", tmp_path / "absent")
    assert run(*prepare).exit_code == 0
    refused("was prepared with --held-out 0.2", *prepare, "--held-out=0.3")
    shard = tmp_path / "corpus" / "training" / "shard-00001.bin"
    shard.write_bytes(b"x" + shard.read_bytes()[1:])
    refused("training/shard-00001.bin missing or not as written", "data", "verify", tmp_path / "corpus")
