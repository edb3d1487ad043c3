"""What is an error to be told in one sentence, and who prints it where several processes run one command."""

import os

import pytest
import torch
import typer
from typer.testing import CliRunner

from echo_ska.commands import files
from echo_ska.commands.errors import OneSentenceErrors, sentence
from echo_ska.models import EchoForCausalLM
from echo_ska.training.processes import shared


@pytest.fixture
def second_of_two(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")


def app_that_fails(error):
    app = typer.Typer(cls=OneSentenceErrors)

    @app.callback()
    def group() -> None: ...

    @app.command()
    def fail() -> None:
        raise error

    return app


def said(error):
    """What a command says that ends with this error."""
    result = CliRunner().invoke(app_that_fails(error), ["fail"], env={"ECHO_SKA_DEBUG": "0"})
    assert result.exit_code in (1, 130)
    return result.stderr


def no_room():
    """The error of an allocation that no machine can serve."""
    with pytest.raises(RuntimeError) as found:
        torch.empty(10**16)
    return found.value


GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of ...")


def test_a_lack_of_memory_is_one_sentence():
    assert said(GPU) == "There is not enough memory (2.00 GiB were asked for at once).\n"
    assert said(no_room()) == f"There is not enough memory ({4 * 10**16} bytes were asked for at once).\n"
    with pytest.raises(RuntimeError, match="of another kind"):
        CliRunner().invoke(app_that_fails(RuntimeError("of another kind")), ["fail"], catch_exceptions=False)


@pytest.mark.parametrize("where", ["gpu", "cpu"])
def test_a_training_without_enough_memory_says_what_takes_less(run, tmp_path, monkeypatch, where):
    def fail(*arguments, **settings):
        raise GPU if where == "gpu" else no_room()

    (tmp_path / "a.txt").write_text("What is learnt here does not matter. " * 30)
    monkeypatch.setattr(EchoForCausalLM, "forward", fail)
    result = run("train", "--text", tmp_path / "a.txt", "--steps=2")
    assert result.exit_code == 1
    assert result.stderr.startswith("There is not enough memory for this training (")
    assert result.stderr.endswith(
        "take a smaller --batch-size, or divide the batch by --accumulate, or give --checkpoint-activations.\n"
    )
    assert result.stderr.count("\n") == 1


def test_what_one_process_alone_met_names_it(second_of_two, run, tmp_path):
    result = run("train", "--data", tmp_path / "absent")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"process 1: {tmp_path / 'absent'} is no folder")


def test_what_all_meet_is_left_to_the_first(second_of_two):
    assert said(ValueError("mine alone")) == "process 1: Mine alone.\n"
    assert said(shared(ValueError("of all"))) == ""
    assert said(KeyboardInterrupt()) == ""


def test_the_first_and_the_only_process_speak_plainly(monkeypatch):
    monkeypatch.setenv("RANK", "1")  # of one process
    assert said(ValueError("this")) == "This.\n"
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert said(shared(ValueError("this"))) == said(ValueError("this")) == "This.\n"


def test_a_name_at_the_start_keeps_its_spelling():
    error = ValueError("nope does not exist")
    assert sentence(error) == "Nope does not exist."
    assert sentence(error, ["generate", "nope"]) == sentence(error, ["--model=nope"]) == "nope does not exist."


def test_a_text_that_is_not_there_is_named_as_it_was_given(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ("train", "--model", "echo-1m", "--text", "nope", "--output", "new")
    assert run(*command).stderr == "nope does not exist.\n"


def test_places_to_write_in_are_checked_before_any_work(tmp_path, monkeypatch):
    new = tmp_path / "folder" / "new"
    for check in (files.require_folder, files.require_new_folder, files.require_absent):
        check(new, "--output")
    with pytest.raises(ValueError, match=r"--output and --json both name .*new: name two\."):
        files.require_apart(new, tmp_path / "folder" / ".." / "folder" / "new")
    files.require_apart(new, None)
    files.require_apart(new, tmp_path / "figures.json")
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path and allowed(path, mode))
    for check in (files.require_folder, files.require_new_folder, files.require_absent):
        with pytest.raises(ValueError, match=f"--output {new} cannot be written: no permission to write in {tmp_path}"):
            check(new, "--output")
    with pytest.raises(ValueError, match="no permission to write in"):
        files.require_new_folder(tmp_path, "--output")


def test_output_and_json_of_one_name_are_refused(refused, tmp_path):
    same = tmp_path / "same"
    refused("--output and --json both name", "context", "read", tmp_path, tmp_path, "-o", same, "--json", same)
    refused("--output and --json both name", "train", "--text", tmp_path, "--output", same, "--json", same)


@pytest.mark.parametrize(
    ("option", "command"),
    [
        ("FILE", ["context", "read", "{model}", "{text}", "-o", "{text}.state"]),
        ("--context", ["generate", "{model}", "--prompt", "Hi", "--context", "{text}"]),
        ("--text", ["inspect", "{model}", "--text", "{text}"]),
        ("--haystack", ["recall-text", "{model}", "--haystack", "{text}"]),
    ],
)
def test_figures_do_not_take_the_place_of_what_is_read(refused, model_folder, tmp_path, option, command):
    text = tmp_path / "only.txt"
    text.write_text("My only copy.")
    given = [part.format(model=model_folder, text=text) for part in command]
    refused(f"{option} and --json both name {text}", *given, "--json", text)
    assert text.read_text() == "My only copy."
