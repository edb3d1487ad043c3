import json
import os
import subprocess
import sys
import types

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import echo_ska
from echo_ska import experiments
from echo_ska.cli import app
from echo_ska.commands import train as train_module
from echo_ska.commands.errors import sentence
from echo_ska.experiments.trials.pool import JobError
from echo_ska.models.presets import PRESETS
from echo_ska.training.records import make_record, write_json

TINY = [
    f"--set={field}" for field in ("hidden_size=16", "num_heads=2", "rank=4", "state_size=4", "intermediate_size=16")
]
SHORT = ["--steps=4", "--batch-size=2", "--checkpoint-every=2"]
TEXT = [*TINY, *SHORT, "--length=16", "--score-bytes=64", "--samples=1", "--sample-bytes=5"]


@pytest.fixture
def run():
    def run(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"ECHO_SKA_DEBUG": "0"})

    return run


@pytest.fixture
def texts(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("first", "second", "third"):
        (folder / f"{name}.txt").write_text(f"The {name} of three texts [red]. " * 20)
    return folder


@pytest.fixture
def refused(run):
    """Runs a command that must end in one sentence with these words, and returns that."""

    def refused(words, *arguments, code=1):
        result = run(*arguments)
        assert result.exit_code == code, result.output
        assert words in result.stderr
        assert result.stderr.count("\n") == 1
        assert "Traceback" not in result.output
        return result.stderr

    return refused


def test_help_and_version(run):
    assert run("--version").stdout == f"echo-ska {echo_ska.__version__}\n"
    listed = run("--help").stdout
    for command in (
        "demo",
        "models",
        "memory",
        "train",
        "reproduce",
        "generate",
        "inspect",
        "export",
        "eval",
        "recall-text",
        "recipe",
        "convert",
        "report",
        "tokenizer",
        "data",
    ):
        assert command in listed
        assert "echo-ska" in run(command, "--help").stdout


def test_help_needs_no_torch():
    code = "import sys, echo_ska.cli; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


def test_models(run, tmp_path):
    result = run("models", "--json", tmp_path / "models.json")
    assert result.exit_code == 0
    assert all(name in result.stdout for name in PRESETS)
    listed = json.loads((tmp_path / "models.json").read_text())["models"]
    assert [entry["name"] for entry in listed] == list(PRESETS)
    assert all(entry["parameters"] > 0 and set(entry["state_bytes"]) == {"1024", "1048576"} for entry in listed)
    assert f"{listed[0]['parameters']:,}" in result.stdout


def test_memory(run, tmp_path):
    result = run("memory", "echo-1m", "--plot", tmp_path / "m.png", "--json", tmp_path / "m.json")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")
    (comparison,) = json.loads((tmp_path / "m.json").read_text())["comparisons"]
    assert comparison["model"]["measured_at"] == [1024, 2048]
    assert comparison["ratio"]["1048576"] > 10_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.json", "m.png"]


def test_text_is_learnt_kept_and_resumed(run, texts, tmp_path, monkeypatch):
    output, figures = tmp_path / "run", tmp_path / "figures.json"
    command = [
        "train",
        "--text",
        texts / "first.txt",
        texts / "second.txt",
        *TEXT,
        "--output",
        output,
        "--json",
        figures,
    ]
    real = train_module.train

    def stopped(model, data, config, **settings):
        class Interrupting:
            def batch(self, step):
                if step == 3:
                    raise KeyboardInterrupt
                return data.batch(step)

            describe = data.describe

        return real(model, Interrupting(), config, **settings)

    monkeypatch.setattr(train_module, "train", stopped)
    result = run(*command)
    assert result.exit_code == 130
    assert "give the same command again to go on" in result.stderr
    assert "step-000002" in result.stderr
    assert not figures.exists()

    monkeypatch.setattr(train_module, "train", real)
    result = run(*command)
    assert result.exit_code == 0, result.output
    assert "Going on from" in result.stdout
    assert "Sample 1" in result.stdout
    record = json.loads(figures.read_text())
    assert {"bits_per_byte", "bits_per_byte_before", "state_bytes", "parameters", "samples"} <= set(record["figures"])
    assert f"{record['figures']['bits_per_byte']:.3f}" in result.stdout
    kept = AutoModelForCausalLM.from_pretrained(output / "model")
    resumed = kept.state_dict()
    tokenizer = AutoTokenizer.from_pretrained(output / "model")
    assert tokenizer("é")["input_ids"] == list("é".encode())
    assert kept.generation_config.eos_token_id == tokenizer.eos_token_id == 0
    assert run("generate", output / "model", "--prompt", "The ", "--max-new-tokens=3").exit_code == 0

    assert run(*command[:-4], "--output", tmp_path / "whole").exit_code == 0
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole" / "model").state_dict()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)

    assert run(*command).exit_code == 0  # finished already: nothing is recorded twice
    assert len((output / "records.jsonl").read_text().splitlines()) == 1


def test_a_folder_of_another_run_is_refused(run, refused, texts, tmp_path):
    command = ["train", "--text", texts, *TEXT, "--output", tmp_path / "run"]
    assert run(*command).exit_code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    said = run(*command, "--seed=7")
    assert said.stderr == (
        f"--seed 7, but the run in {tmp_path / 'run'} was begun with --seed 0: give the same options to go on with it, "
        "or another --output.\n"
    )
    assert "Going on from" not in said.stdout
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    model = tmp_path / "run" / "checkpoints" / "step-000004" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-9] + b"damaged!!")
    refused("is damaged", *command)
    (tmp_path / "other" / "model").mkdir(parents=True)
    refused("train in another directory", *command[:-1], tmp_path / "other")


@pytest.mark.parametrize("task", ["mqar", "mqar-grid"])
def test_a_task_is_learnt(run, tmp_path, monkeypatch, task):
    monkeypatch.setattr("echo_ska.commands.goals.EVALUATED_TOKENS", 64)
    result = run(
        "train",
        "--task",
        task,
        "--pairs=2",
        "--length=16",
        "--vocab-size=128",
        *TINY,
        *SHORT,
        "--json",
        tmp_path / "f.json",
    )
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "f.json").read_text())
    assert list(record["figures"]["recall"]) == list(record["figures"]["state_bytes"]) == ["16", "32", "64", "128"]
    assert record["configuration"]["data"]["pairs"] == 2
    assert record["configuration"]["model"]["rank"] == 4


@pytest.mark.parametrize(
    ("task", "settings", "kept"),
    [
        ("system-prompt", ["--task-set=gaps=hard", "--task-set=facts=4", "--length=32"], {"gaps": "hard", "facts": 4}),
        ("multi-hop", ["--task-set=written=true", "--num-values=8", "--task-set=length=32"], {"written": True}),
        ("mixture", ["--length=64"], {"task": "RecallMixture"}),
    ],
)
def test_a_task_is_learnt_with_settings_of_its_own(run, tmp_path, monkeypatch, task, settings, kept):
    monkeypatch.setattr("echo_ska.commands.goals.EVALUATED_TOKENS", 64)
    result = run("train", "--task", task, *settings, *TINY, *SHORT, "--json", tmp_path / "f.json")
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "f.json").read_text())
    assert len(record["figures"]["recall"]) == 4
    assert kept.items() <= record["configuration"]["data"].items()


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("Give one of --text PATH, --task NAME", []),
        ("Give one of --text PATH, --task NAME", ["--task=mqar", "--text=x"]),
        ("no task 'sorting': choose from mqar, mqar-grid", ["--task=sorting"]),
        ("--gap is not a setting of mqar", ["--task=mqar", "--gap=3"]),
        ("--length or --gap", ["--task=mqar-grid", "--gap=3", "--length=64"]),
        ("need a length of at least", ["--task=mqar", "--pairs=40"]),
        ("needle has no setting hops, only length, needles", ["--task=needle", "--task-set=hops=2"]),
        ("--task-set takes FIELD=VALUE", ["--task=needle", "--task-set=needles"]),
        ("needles must be a whole number", ["--task=needle", "--task-set=needles=many"]),
        ("written must be true or false", ["--task=multi-hop", "--task-set=written=yes"]),
        ("--length or --task-set length", ["--task=needle", "--length=64", "--task-set=length=64"]),
        ("Give --pairs or --task-set pairs=..., not both", ["--task=mqar-grid", "--pairs=4", "--task-set=pairs=8"]),
        ("--num-keys or --task-set num_keys", ["--task=needle", "--num-keys=9", "--task-set=num_keys=9"]),
        ("--length or --gap", ["--task=mqar-grid", "--length=64", "--task-set=gap=3"]),
        ("parts must be pairs of a task", ["--task=mixture", "--task-set=parts=[[1,2]]"]),
        ("--pairs is not a setting of mixture", ["--task=mixture", "--pairs=2"]),
        ("--held-out is for --text", ["--task=mqar", "--held-out=x"]),
        ("No preset", ["--task=mqar", "--model=echo-9m"]),
        ("EchoConfig has no field wibble", ["--task=mqar", "--set=wibble=1"]),
        ("--set takes FIELD=VALUE", ["--task=mqar", "--set=rank"]),
        ("must be a list of layers", ["--task=mqar", "--set=ska_layers=1"]),
        ("use --vocab-size", ["--task=mqar", "--set=vocab_size=9"]),
        ("steps must be", ["--task=mqar", "--steps=0"]),
        ("device must be one of", ["--task=mqar", "--device=abacus"]),
        ("strategy must be one of auto, ddp, fsdp, deepspeed", ["--task=mqar", "--strategy=abacus"]),
        ("start several, as in torchrun", ["--task=mqar", "--strategy=fsdp"]),
        ("spike_factor must be a number above 1", ["--task=mqar", "--spike-factor=1"]),
        ("cannot be divided into 5 equal parts", ["--task=mqar", "--accumulate=5"]),
        ("does not exist", ["--text=absent.txt"]),
    ],
)
def test_training_that_cannot_be(refused, words, arguments):
    said = refused("", "train", *arguments)
    assert words.lower() in said.lower()


def test_text_that_cannot_be(refused, texts, tmp_path):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "latin.txt").write_bytes("déjà".encode("latin-1"))
    (tmp_path / "bare").mkdir()
    for words, path in (("is empty", "empty.txt"), ("byte 1 is 0xe9", "latin.txt"), ("holds no text", "bare")):
        refused(words, "train", "--text", tmp_path / path)
    refused("--pairs is for --task", "train", "--text", texts, "--pairs=2")
    refused("--task-set is for --task", "train", "--text", texts, "--task-set=pairs=2")
    refused("--score-bytes must be at least 2", "train", "--text", texts, "--score-bytes=1")
    refused("less than one window", "train", "--text", texts, "--length=100000", *TINY)


def test_numbers_that_are_not_finite_end_in_a_sentence(refused, texts, monkeypatch):
    def diverge(*arguments, **settings):
        raise FloatingPointError("The loss became nan at step 3.")

    monkeypatch.setattr(train_module, "train", diverge)
    refused("loss became nan", "train", "--text", texts, *TEXT)


@pytest.mark.parametrize("command", [["models"], ["memory", "echo-1m"], ["demo"], ["train", "--task=mqar"]])
def test_json_is_refused_before_any_work(refused, tmp_path, command):
    refused("is a folder", *command, "--json", tmp_path)
    refused("does not exist", *command, "--json", tmp_path / "absent" / "figures.json")


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (["data", "prepare", "rows.jsonl", "-o", "{}"], "--output"),
        (["data", "show", "{}"], "DIR"),
        (["train", "--task=mqar", "-o", "{}"], "--output"),
        (["train", "--data", "{}"], "--data"),
        (["convert", "absent", "--text=t", "-o", "{}"], "--output"),
        (["context", "read", "{}/model", "a.txt", "-o", "absent"], "the run of MODEL"),
        (["context", "show", "{}"], "STATE"),
        (["context", "list", "{}"], "STORE"),
        (["generate", "absent", "--prompt=p", "--state", "{}"], "--state"),
        (["generate", "{}", "--prompt=p"], "MODEL"),
        (["generate", "{}/model", "--prompt=p"], "the run of MODEL"),
        (["eval", "{}", "--tasks=t"], "MODEL"),
        (["inspect", "{}", "-o", "pictures"], "MODEL"),
        (["recall-text", "{}"], "MODEL"),
        (["recipe", "show", "echo-50m", "--tokenizer", "{}"], "--tokenizer"),
    ],
)
def test_json_inside_a_folder_that_a_command_reads_or_writes_is_refused(refused, tmp_path, command, option):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "records.jsonl").write_text("precious\n")
    command = [word.format(kept) for word in command]
    inside = tmp_path / "kept" / ".." / "kept" / "records.jsonl"
    refused(f"is inside {kept} ({option}) and could replace a file of it", *command, "--json", inside)
    assert (kept / "records.jsonl").read_text() == "precious\n"


def test_other_paths_and_names(refused, tmp_path):
    (tmp_path / "file").touch()
    for command in (["train", "--task=mqar"], ["demo"]):
        refused("is a file", *command, "--output", tmp_path / "file" / "below")
    refused("must end in .png", "memory", "--plot", tmp_path / "m.pdf")
    refused("There is no preset 'nope': choose from echo-1m", "memory", "nope")
    refused("Dtype must be one of", "memory", "echo-1m", "--dtype=fp8")


def test_usage_errors_have_their_own_code(run):
    assert run("train", "--steps=many").exit_code == 2
    assert run("juggle").exit_code == 2


def test_demo_and_reproduce_start_what_they_name(run, refused, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("echo_ska.commands.run.run_demo", lambda **settings: calls.append(settings))
    assert run("demo", "--output", tmp_path / "d", "--json", tmp_path / "d.json").exit_code == 0
    assert calls[0]["output"] == tmp_path / "d"
    assert calls[0]["json_path"] == tmp_path / "d.json"

    def start(console, **options):
        calls.append(options)
        if options["quick"]:
            raise JobError("The job failed.")
        return [make_record("juggling", {"balls": 3}, {"drops": 1}, seed=0, seconds=1.0)]

    juggling = types.SimpleNamespace(description="[Balls].", run=start, text="", takes_device=False)
    monkeypatch.setitem(experiments.EXPERIMENTS, "juggling", juggling)
    listed = {line.partition(":")[0]: line for line in run("reproduce").stdout.splitlines()}
    assert listed["juggling"] == "juggling: [Balls]."
    assert run("reproduce", "--json", tmp_path / "list.json").exit_code == 0
    in_json = json.loads((tmp_path / "list.json").read_text())["experiments"]
    assert in_json.keys() == listed.keys()
    assert in_json["juggling"] == {"description": "[Balls].", "text": ""}
    for name, words in {"language-model": "train/", "scaling": "without --text", "zero-shot": "benchmarks'"}.items():
        assert words in listed[name].partition("--text FOLDER:")[2]
    assert run("reproduce", "juggling", "--seeds=2", "--json", tmp_path / "j.json").exit_code == 0
    assert json.loads((tmp_path / "j.json").read_text())["records"][0]["figures"] == {"drops": 1}
    assert calls[1] == {"seeds": 2, "quick": False, "text": None, "device": "cpu"}
    refused("The job failed.", "reproduce", "juggling", "--quick")
    refused("no experiment 'nope': choose from", "reproduce", "nope")
    refused("leave out --text, which is for language-model", "reproduce", "recipe", "--text", tmp_path)
    refused("give --text a folder with train/", "reproduce", "language-model")
    refused("leave out --device, which is for aids", "reproduce", "recipe", "--device=cuda")
    refused("Device must be cpu or cuda, got 'tpu'", "reproduce", "aids", "--device=tpu")
    if not torch.cuda.is_available():
        refused("torch finds no GPU: leave out --device", "reproduce", "aids", "--device=cuda")
    refused("has no folder train", "reproduce", "language-model", "--text", tmp_path)


def test_sentences():
    assert sentence(FileNotFoundError(2, "No such file", "x.txt")) == "x.txt: No such file."
    assert sentence(ValueError("two\nlines")) == "Two lines."
    assert sentence(ValueError("--json x is bad.")) == "--json x is bad."
    assert sentence(MemoryError()) == "MemoryError."


def test_json_is_whole_or_absent(tmp_path):
    path = tmp_path / "f.json"
    write_json(path, {"a": float("nan"), "b": [1.5]})
    assert json.loads(path.read_text()) == {"a": None, "b": [1.5]}
    with pytest.raises(TypeError):
        write_json(path, {"a": 2, (1, 2): 3})
    assert json.loads(path.read_text())["b"] == [1.5]
    assert list(tmp_path.iterdir()) == [path]


def test_the_program_itself(tmp_path):
    program = [sys.executable, "-c", "from echo_ska.cli import main; main()"]
    command = [*program, "models", "--json", str(tmp_path / "absent" / "m.json")]
    environment = os.environ | {"ECHO_SKA_DEBUG": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    done = subprocess.run(command, capture_output=True, text=True, env=environment | {"ECHO_SKA_DEBUG": "1"})
    assert done.stderr.startswith("Traceback")
    assert done.stderr.rstrip().endswith("does not exist.")


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("Top_k must be at least 1, got 0.", ["--top-k=0"]),
        ("Temperature must be a number of at least 0, got -1.0.", ["--temperature=-1"]),
        ("Intermediate_size must be an integer >= 1 or None, got -4.", ["--set=intermediate_size=-4"]),
        ("Norm_eps must be a positive number, got 'abc'.", ["--set=norm_eps=abc"]),
        ("conv_kernel must be an integer >= 2, got 1.", ["--set=conv_kernel=1"]),
        ("ska_layers must be a list of layers, got 5.", ["--set=ska_layers=5"]),
        ("EchoConfig has no field _foo.", ["--set=_foo=1"]),
        ("dtype must be a floating-point type of torch, such as 'float32', or None", ["--set=dtype=foo"]),
        ("has no state, so the model cannot be scored", ['--set=layer_types=["mamba2","ska-paper","mamba2","mamba2"]']),
    ],
)
def test_settings_are_refused_before_training(refused, texts, monkeypatch, words, arguments):
    monkeypatch.setattr(train_module, "train", lambda *_, **__: pytest.fail("training began"))
    said = refused("", "train", "--text", texts, *TINY, *SHORT, *arguments)
    assert words.lower() in said.lower()


def test_somebody_elses_log_is_left_alone(refused, texts, tmp_path):
    output = tmp_path / "run"
    output.mkdir()
    (output / "log.jsonl").write_text("my precious log\n")
    refused("was not written by a training", "train", "--text", texts, *TEXT, "--output", output)
    assert (output / "log.jsonl").read_text() == "my precious log\n"
