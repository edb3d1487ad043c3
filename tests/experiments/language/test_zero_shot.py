"""What a trained model answers without training: the jobs in small, and that tables call chance what is chance."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from made_up import made_up
from rich.console import Console
from study_runs import run_twice, written_table
from text_folder import write_texts

from echo_ska.evaluation.babilong import load_babi
from echo_ska.evaluation.text_recall import token_counter
from echo_ska.experiments import EXPERIMENTS, trained_tables
from echo_ska.experiments.language import zero_shot
from echo_ska.experiments.language.zero_shot import MODEL, asked, benchmark_rows, recall_rows, recalled, verdict
from echo_ska.models import EchoConfig, EchoForCausalLM, byte_tokenizer
from echo_ska.training.records import append

RECORDS = Path(__file__).parents[3] / "results" / "zero-shot.jsonl"
HARNESS = importlib.util.find_spec("lm_eval") is not None


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model where the checkpoint is, few questions, and a folder with the files that are asked from."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_heads": 2, "rank": 4, "state_size": 4}
    EchoForCausalLM(EchoConfig(**sizes, ska_layers=[1])).save_pretrained(MODEL)
    byte_tokenizer().save_pretrained(MODEL)
    monkeypatch.setattr(zero_shot, "LENGTHS", (1024, 1500))
    monkeypatch.setattr(zero_shot, "SAMPLES", 2)
    monkeypatch.setattr(zero_shot, "RECALLED", ("single", "qa1"))
    monkeypatch.setattr(zero_shot, "SEGMENTS", (1, 64, 1000))
    monkeypatch.setattr(zero_shot, "QUESTIONS", {"arc_easy_local": 2})
    data = write_texts(tmp_path / "data")
    monkeypatch.setattr(trained_tables, "RESULTS", data)
    rows = [{"query": "Why?", "choices": ["a", "b", "c", "d"][: 4 - 2 * n], "gold": 1} for n in range(3)][:2]
    (data / "arc_easy_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return data


def test_recall_and_reading_run_once_and_fill_their_tables(folder, monkeypatch):
    jobs = [one for one in asked(folder) if one.kind != "benchmark"]
    assert [one.kind for one in jobs] == ["reading", "recall", "recall"]
    assert [path.parent.name for path in jobs[0].files()] == ["train"]
    records = run_twice("zero-shot", [one.recorded_run("print") for one in jobs], folder, monkeypatch)
    assert str(folder) not in json.dumps([record.configuration for record in records])
    read = records[0].figures
    assert (read["bytes"], list(read["by_segment"])) == (700, ["1", "64", "1000"])
    ways = list(read["by_segment"].values())
    bits = [row["bits_per_byte"] for row in ways]
    assert max(bits) - min(bits) < 1e-4
    assert len({row["state_bytes"] for row in ways}) == 1
    peaks = [row["peak_memory_bytes"] for row in ways]
    assert peaks == sorted(peaks)
    for record in records[1:]:
        assert [row["length"] for row in record.figures["by_length"]] == [1024, 1500]
        assert len({row["state_bytes"] for row in record.figures["by_length"]}) == 1
    assert [row[:2] for row in written_table("zero-shot-reading")[1:]] == [
        ["700", segment] for segment in ("1", "64", "1,000")
    ]
    assert [row[0] for row in written_table("zero-shot-recall")[1:]] == ["single", "qa1"]


def test_records_are_of_one_model_and_of_the_very_files(folder):
    jobs = asked(folder)
    before = [one.recorded_run("print").configuration for one in jobs]
    assert [list(configuration["files"]) for configuration in before[1:]] == [
        ["Conrad_Almayer_1895.txt"],
        ["Conrad_Almayer_1895.txt", *(path.name for path in jobs[2].files()[1:])],
        ["arc_easy_test.jsonl"],
    ]
    (folder / "arc_easy_test.jsonl").write_text(json.dumps({"query": "Who?", "choices": ["a", "b"], "gold": 0}) + "\n")
    jobs[0].files()[0].write_text("another novel")
    after = [one.recorded_run("print").configuration for one in asked(folder)]
    assert [one == other for one, other in zip(before, after, strict=True)] == [False, True, True, False]

    path = folder / "zero-shot.jsonl"
    for fingerprint, task in (("old", jobs[0]), ("new", jobs[2]), ("old", jobs[1]), ("new", jobs[2])):
        append(made_up("zero-shot", task.recorded_run(fingerprint).configuration, {}), path)
    found = zero_shot.recorded_results(path)
    assert [record.configuration["task"] for record in found] == ["qa1"]  # no reading of another model
    without = jobs[3].configuration("new")
    append(made_up("zero-shot", without, {}), path)  # which does not say what it was asked from
    assert zero_shot.recorded_results(path) == found


@pytest.mark.skipif(not HARNESS, reason="lm-evaluation-harness is not installed (the extra `eval`)")
def test_benchmarks_are_asked_and_know_their_chance(folder, monkeypatch):
    jobs = [one.recorded_run("print") for one in asked(folder) if one.kind == "benchmark"]
    (record,) = run_twice("zero-shot", jobs, folder, monkeypatch)
    assert record.figures["questions"] == 2
    assert record.figures["chance"] == pytest.approx((1 / 4 + 1 / 2) / 2)
    assert written_table("zero-shot")[1][0] == "arc_easy"


def test_what_is_refused(folder, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="leave --seeds out"):
        zero_shot.run(Console(), seeds=5, text=folder)
    run = EXPERIMENTS["zero-shot"].run
    with pytest.raises(ValueError, match="zero-shot asks from files that are not part of it: give --text a folder"):
        run(Console())
    if not HARNESS:
        with pytest.raises(ValueError, match="lm-evaluation-harness is not installed"):
            run(Console(), text=folder)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    with pytest.raises(ValueError, match="start zero-shot in a checkout"):
        run(Console(), text=folder)


def test_the_chance_in_the_records_is_that_of_the_stories():
    """What chance is may be defined anew; records are not."""
    figures = {task: found["by_length"] for task, found in recalled(zero_shot.recorded_results(RECORDS)).items()}
    stories = [task for task in figures if task.startswith("qa")]
    assert stories == ["qa1", "qa2"]
    for task in load_babi(None, stories):
        asked_of = task.limited_to(figures[task.name][0]["length"], token_counter(byte_tokenizer()))
        assert {row["chance"] for row in figures[task.name]} == {asked_of.chance}


def test_chance_is_called_chance():
    assert verdict(0.30, 0.03, 0.25, 500) == "chance"
    assert verdict(0.35, 0.03, 0.25, 500) == "above chance"
    assert verdict(0.15, 0.03, 0.25, 500) == "below chance"
    assert verdict(0.0, 0.0, 0.25, 5) == "chance"  # five wrong answers say nothing
    metrics = {"acc": {"value": 0.26, "standard_error": 0.02}, "perplexity": {"value": 6e5, "standard_error": None}}
    figures = {"questions": 500, "chance": 0.25, "metrics": metrics}
    table = benchmark_rows([made_up("zero-shot", {"kind": "benchmark", "task": "piqa_local"}, figures)])
    assert table[1] == ["piqa", "acc", "500", "0.260", "0.020", "0.250", "chance"]
    assert table[2] == ["piqa", "perplexity", "500", "6e+05", "", "", ""]
    row = {"accuracy": 1.0, "standard_error": 0.0, "chance": 0.1, "samples": 20, "state_bytes": 8, "length": 1024}
    rows = [row | {"peak_memory_bytes": 100}, row | {"length": 2048, "accuracy": 0.1, "peak_memory_bytes": 150}]
    table = recall_rows([made_up("zero-shot", {"kind": "recall", "task": "single"}, {"by_length": rows})])
    assert table[1] == ["single", "100 ± 0 (above)", "10 ± 0", "10", "8 B", "1.50"]
