"""`echo-ska bench`."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from echo_ska.benchmarks import run as run_module
from echo_ska.cli import app
from echo_ska.commands.bench import BenchRequest

TINY = [
    "bench",
    "--quick",
    "--routes=softmax,linear",
    "--parts=training",
    "--lengths=8,16",
    "--rounds=1",
    "--threads=1",
]


def run(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"ECHO_SKA_DEBUG": "0"})


@pytest.mark.parametrize(
    ("lengths", "decode_tokens", "name"),
    [
        (None, None, "full"),
        (None, 2_000_000, "full"),
        (None, 999_999, "own"),
        (None, 0, "own"),
        ("8", 2_000_000, "own"),
    ],
)
def test_a_plan_is_full_where_nothing_is_left_out(lengths, decode_tokens, name):
    plan = BenchRequest(lengths, None, None, 1, None, decode_tokens, "cpu", False).plan()
    assert plan.name == name
    assert plan.decode_tokens == (1_000_000 if decode_tokens is None else decode_tokens)


def test_it_prints_keeps_and_draws(tmp_path):
    result = run(*TINY, "--output", tmp_path / "out", "--json", tmp_path / "bench.json")
    assert result.exit_code == 0, result.output
    assert "Forward and backward" in result.stdout
    assert "linear attention" in result.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["bench-own.png", "bench.jsonl"]
    (line,) = (tmp_path / "out" / "bench.jsonl").read_text().splitlines()
    kept, printed = json.loads(line), json.loads((tmp_path / "bench.json").read_text())
    assert kept == printed
    assert kept["configuration"]["lengths"] == [8, 16]
    assert kept["hardware"]["threads"] == 1
    assert set(kept["figures"]["training"]) == {"softmax", "linear"}


def test_ctrl_c_keeps_what_was_measured_and_exits_as_other_commands_do(tmp_path, monkeypatch):
    measure = run_module.measure_length

    def interrupted(routes, tokens, *rest):
        if tokens == 16:
            raise KeyboardInterrupt
        return measure(routes, tokens, *rest)

    monkeypatch.setattr(run_module, "measure_length", interrupted)
    result = run(*TINY, "--output", tmp_path, "--json", tmp_path.parent / "bench.json")
    kept = tmp_path / "bench.jsonl"
    assert result.exit_code == 130
    assert result.stderr == f"Stopped; what was measured until then is kept in {kept}.\n"
    assert "Forward and backward" in result.stdout
    record = json.loads(kept.read_text())
    assert set(record["figures"]["training"]["linear"]) == {"8"}
    assert json.loads((tmp_path.parent / "bench.json").read_text()) == record


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("--lengths must be numbers of tokens with commas between them, got 'many'", ["--lengths=many"]),
        ("Lengths must ascend", ["--lengths=16,8"]),
        ("There is no route 'sorting': choose from ska", ["--routes=sorting"]),
        ("cannot run here: it runs on a GPU only", ["--routes=softmax-flash", "--device=cpu"]),
        ("There is no part 'x'", ["--parts=x"]),
        ("Device must be cpu or cuda", ["--device=abacus"]),
        ("Threads must be at least 1", ["--threads=0"]),
    ],
)
def test_what_cannot_be_is_one_sentence(words, arguments, tmp_path):
    result = run("bench", "--quick", "--output", tmp_path / "out", *arguments)
    assert result.exit_code == 1, result.output
    assert words.lower() in result.stderr.lower()
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_paths_are_checked_before_any_work(tmp_path):
    (tmp_path / "file").touch()
    assert "is a file" in run("bench", "--output", tmp_path / "file").stderr
    assert "is a folder" in run("bench", "--json", tmp_path).stderr


def test_help():
    assert "--decode-tokens" in run("bench", "--help").stdout
