"""`echo-ska recall-text`, with the shipped sample and with files of one's own."""

from __future__ import annotations

import json

import pytest

from echo_ska.commands import recall_text as module
from echo_ska.evaluation.needle import NEEDLES

BABI = "1 John went to the hall.\n2 Where is John? \thall\t1\n3 John went to the attic.\n4 Where is John? \tattic\t3\n"


def test_the_sample_and_the_shipped_novel_need_no_folder(run, model_folder, tmp_path):
    figures = tmp_path / "f.json"
    asked = ("--lengths", "0,700", "--samples", 2, "--variants", "qa1,qa10", "--json", figures)
    result = run("recall-text", model_folder, *asked)
    assert result.exit_code == 0, result.output
    record = json.loads(figures.read_text())
    found = record["figures"]["results"]
    assert [(row["task"], row["length"]) for row in found] == [("qa1", 0), ("qa1", 700), ("qa10", 0), ("qa10", 700)]
    assert all(row["samples"] == 2 and 0 <= row["accuracy"] <= 1 and 0 < row["chance"] < 1 for row in found)
    assert found[0]["tokens"] < 600 < found[1]["tokens"] < 700
    assert record["configuration"]["variants"] == "qa1,qa10"
    assert record["hardware"]["cores"] >= 1
    for words in ("qa10", "no prose", "700", "accuracy", "chance"):
        assert words in result.stdout


def test_files_of_ones_own(run, model_folder, tmp_path):
    (tmp_path / "babi").mkdir()
    (tmp_path / "babi" / "qa1_mine_train.txt").write_text(BABI)
    (tmp_path / "novel.txt").write_text("It rained. " * 50)
    figures = tmp_path / "f.json"
    folders = ("--data", tmp_path / "babi", "--haystack", tmp_path / "novel.txt")
    result = run("recall-text", model_folder, *folders, "--lengths", "300", "--samples", 3, "--json", figures)
    assert result.exit_code == 0, result.output
    [row] = json.loads(figures.read_text())["figures"]["results"]
    assert row["chance"] == 0.5
    assert row["samples"] == 2
    assert "qa1 has 2 stories that fit: each was asked once." in result.stdout
    assert 280 < row["tokens"] < 300


def test_needles(run, model_folder, tmp_path):
    figures = tmp_path / "f.json"
    asked = ("--task", "needle", "--lengths", "1500", "--samples", 1, "--json", figures)
    assert run("recall-text", model_folder, *asked).exit_code == 0
    found = json.loads(figures.read_text())["figures"]["results"]
    assert [(row["task"], row["chance"]) for row in found] == [
        ("single", 0.1),
        ("multi-key", 0.1),
        ("multi-value", 0.25),
    ]


def test_needles_that_fit_are_asked_and_others_refused_before_any_is_read(run, refused, model_folder, monkeypatch):
    """The first story of seed 0 takes 188 tokens, others 182 to 197."""
    task = NEEDLES["single"]
    sizes = {seed: [task.story(number, seed).tokens(len) for number in range(2)] for seed in range(50)}
    small = next(seed for seed, each in sizes.items() if max(each) < 188)
    asked = ("recall-text", model_folder, "--task", "needle", "--variants", "single", "--samples", 2)
    result = run(*asked, "--lengths", max(sizes[small]), "--seed", small)
    assert result.exit_code == 0, result.output
    monkeypatch.setattr(module, "text_recall", lambda *_, **__: pytest.fail("asked before all was found to fit"))
    large, most = next((seed, max(each)) for seed, each in sizes.items() if each[0] < max(each))
    words = f"The stories of single take up to {most} tokens, which do not fit into {most - 1}"
    refused(words, *asked, "--lengths", most - 1, "--seed", large)
    both = ("recall-text", model_folder, "--task", "needle", "--variants", "single,multi-value")
    refused("The stories of multi-value take up to 9", *both, "--lengths", "0,600")


def test_what_is_refused(refused, model_folder, tmp_path):
    refused("There is no task 'novel'", "recall-text", model_folder, "--task", "novel")
    refused("--lengths takes whole numbers", "recall-text", model_folder, "--lengths", "1k")
    refused("--lengths takes whole numbers", "recall-text", model_folder, "--lengths=-1")
    refused("--data is for babilong", "recall-text", model_folder, "--task", "needle", "--data", tmp_path)
    refused("holds none of bAbI's files", "recall-text", model_folder, "--data", tmp_path)
    refused("which do not fit into 20", "recall-text", model_folder, "--lengths", "20")
    refused("There is no folder", "recall-text", tmp_path / "absent")
