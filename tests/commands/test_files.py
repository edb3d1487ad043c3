"""Where `--json` writes: not in the place of what a command reads or writes; through links, into FIFOs and devices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

import pytest

from echo_ska.commands import files
from echo_ska.training.recipes import RECIPES

TEXT = "What is learnt here does not matter. " * 30


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The working directory, with a text, a folder of texts and a corpus that is none yet."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "only.txt").write_text(TEXT)
    (tmp_path / "texts" / "inner").mkdir(parents=True)
    (tmp_path / "texts" / "inner" / "a.txt").write_text(TEXT)
    (tmp_path / "link.txt").symlink_to("only.txt")
    return tmp_path


@pytest.mark.parametrize(
    ("command", "figures"),
    [
        (["inspect", "absent", "--text", "a b", "-o", "."], "figures.json"),
        (["bench", "-o", ".", "--parts=none"], "figures.json"),
        (["recall-text", "absent", "--haystack", "texts"], "texts/figures.json"),
        (["recall-text", "absent", "--data", "texts"], "texts/figures.json"),
        (["train", "--text", "texts", "--steps=0"], "texts/figures.json"),
        (["convert", "absent", "--text", "texts", "-o", "out"], "texts/figures.json"),
        (["data", "prepare", "texts", "-o", "out", "--held-out=2"], "texts/figures.json"),
    ],
)
def test_a_file_that_would_replace_nothing_is_taken(run, place, command, figures):
    """The command ends for another reason, which it looks for later."""
    result = run(*command, "--json", figures)
    assert result.exit_code == 1, result.output
    assert "--json" not in result.stderr, result.stderr


@pytest.mark.parametrize(
    ("command", "figures", "words"),
    [
        (["train", "--text", "only.txt"], "only.txt", "--text and --json both name only.txt: name two"),
        (["train", "--text", "texts", "only.txt"], "./only.txt", "--text and --json both name only.txt"),
        (["train", "--text", "only.txt"], "link.txt", "--text and --json both name only.txt"),
        (["train", "--text", "link.txt"], "only.txt", "--text and --json both name link.txt"),
        (["train", "--text", "texts"], "texts/inner/a.txt", "is inside texts (--text) and could replace"),
        (["train", "--text", "texts"], "texts/new.md", "is inside texts (--text) and could replace"),
        (["convert", "absent", "--text", "only.txt", "-o", "out"], "only.txt", "--text and --json both name only.txt"),
        (["convert", "absent", "--text", "texts", "-o", "out"], "texts/inner/a.txt", "is inside texts (--text)"),
        (["data", "prepare", "only.txt", "-o", "out"], "only.txt", "SOURCE and --json both name only.txt"),
        (["data", "prepare", "texts", "-o", "out"], "texts/rows.jsonl", "is inside texts (SOURCE)"),
        (["data", "prepare", "only.txt", "-o", "out", "--tokenizer", "texts"], "texts/t.json", "(--tokenizer)"),
        (["recall-text", "absent", "--data", "texts"], "texts/inner/a.txt", "is inside texts (--data)"),
        (["reproduce", "scaling", "--text", "texts"], "texts/inner/a.txt", "is inside texts (--text)"),
        (["inspect", "absent", "--text", "a b", "-o", "."], "gram.png", "is inside . (--output) and could replace"),
        (["bench", "-o", "."], "bench.jsonl", "is inside . (--output) and could replace a file of it"),
        (["bench", "-o", "."], "bench-quick.png", "is inside . (--output) and could replace a file of it"),
        (["demo", "-o", "."], "recall.png", "is inside . (--output) and could replace a file of it"),
    ],
)
def test_figures_that_would_replace_what_is_read_or_written_are_refused(refused, place, command, figures, words):
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    refused(words, *command, "--json", figures)
    assert {path: path.read_bytes() for path in before} == before
    assert not (place / "out").exists()


def test_the_texts_of_a_recipe_are_not_replaced(refused, place):
    recipe = RECIPES["echo-books"]
    for folder in recipe.text:
        (place / folder).mkdir()
        (place / folder / "a.txt").write_text(TEXT)
    words = "--json TRAIN/a.txt is inside TRAIN (--text) and could replace"
    refused(words, "train", "--recipe", recipe.name, "--json", "TRAIN/a.txt")
    assert (place / "TRAIN" / "a.txt").read_text() == TEXT


def test_the_files_of_the_tasks_that_are_asked_are_not_replaced(refused, place):
    pytest.importorskip("lm_eval", reason="eval needs lm-evaluation-harness")
    command = ["eval", "absent", "--tasks", "lambada_local", "--data", "texts"]
    refused("is inside texts (--data)", *command, "--json", "texts/inner/lambada_test.jsonl")
    refused("absent", *command, "--json", "texts/inner/scores.json")


def test_a_link_out_of_a_folder_leads_away_from_it(place):
    (place / "texts" / "out.txt").symlink_to(place / "elsewhere.json")
    (place / "in.json").symlink_to(place / "texts" / "inner" / "a.txt")
    files.require_apart(place / "texts", place / "texts" / "out.txt")
    with pytest.raises(ValueError, match=r"in.json is inside .*texts \(--output\)"):
        files.require_apart(place / "texts", place / "in.json")


def test_where_a_link_leads_must_be_writable(place):
    (place / "astray").symlink_to("absent/figures.json")
    with pytest.raises(ValueError, match=r"--json astray cannot be written: the folder .*absent does not exist"):
        files.require_writable(files.Path("astray"), "--json")
    (place / "round").symlink_to("round")
    with pytest.raises(ValueError, match="--json round cannot be written: it is a link that leads round in a circle"):
        files.require_writable(files.Path("round"), "--json")


def test_a_link_stays_a_link(run, place):
    (place / "figures.json").symlink_to("kept.json")
    for _ in range(2):  # made, then replaced
        assert run("models", "--json", "figures.json").exit_code == 0
        assert (place / "figures.json").is_symlink()
        assert json.loads((place / "kept.json").read_text())["models"]
    assert not (place / "kept.json").is_symlink()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs")
def test_a_fifo_is_written_to(run, place):
    os.mkfifo("fifo")
    read = []
    reader = threading.Thread(target=lambda: read.append((place / "fifo").read_text()), daemon=True)
    reader.start()
    assert run("models", "--json", "fifo").exit_code == 0
    reader.join(timeout=60)
    assert json.loads(read[0])["models"]
    assert (place / "fifo").is_fifo()


def test_standard_output_holds_the_figures_alone(run, place):
    result = run("models", "--json", "-")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["models"]
    assert "parameters" in result.stderr
    assert not (place / "-").exists()
    assert run("models").stderr == ""


@pytest.mark.skipif(not os.path.exists("/dev/stdout"), reason="there is no /dev/stdout")
@pytest.mark.parametrize("redirected", [False, True])
def test_a_name_of_standard_output_is_standard_output(place, redirected):
    (place / "out").symlink_to("/dev/stdout")  # which a mistake could replace for the whole machine
    command = [sys.executable, "-m", "echo_ska", "models", "--json", "out"]
    if redirected:  # to a file, which must not be replaced: what else is printed would be lost
        with (place / "printed").open("w") as printed:
            subprocess.run(command, stdout=printed, stderr=subprocess.PIPE, check=True)
        said = (place / "printed").read_text()
    else:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert json.loads(said)["models"]


def test_where_a_text_is_written_figures_are_not(refused, place):
    refused(
        "--json - is standard output, to which the text goes: name a file.",
        *("generate", "absent", "--prompt", "Hi", "--json", "-"),
    )
