"""Who prints an error, where several processes run one command."""

import pytest
import typer
from typer.testing import CliRunner

from echo_ska.commands.errors import OneSentenceErrors
from echo_ska.training.processes import shared


@pytest.fixture
def second_of_two(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")


def said(error):
    """What a command says that ends with this error."""
    app = typer.Typer(cls=OneSentenceErrors)

    @app.callback()
    def group() -> None: ...

    @app.command()
    def fail() -> None:
        raise error

    result = CliRunner().invoke(app, ["fail"], env={"ECHO_SKA_DEBUG": "0"})
    assert result.exit_code in (1, 130)
    return result.stderr


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
