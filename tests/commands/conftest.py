"""A small byte-level model and its tokenizer, kept in a folder, and the command line to ask it by."""

from __future__ import annotations

import contextlib

import pytest
import torch
from typer.testing import CliRunner

from echo_ska.cli import app
from echo_ska.models import EchoConfig, EchoForCausalLM, byte_tokenizer

SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_heads": 2, "rank": 8, "state_size": 8}


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """All three kinds of layers."""
    folder = tmp_path_factory.mktemp("models") / "model"
    torch.manual_seed(0)
    model = EchoForCausalLM(EchoConfig(**SIZES, ska_layers=[1], attention_layers=[2]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # untrained models hardly tell tokens apart
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def files_up_to():
    """Within it no file may grow beyond so many bytes: a real write that fails, wherever tests run."""
    resource = pytest.importorskip("resource", reason="needs a limit on the size of files")

    @contextlib.contextmanager
    def files_up_to(size):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    return files_up_to


@pytest.fixture
def run():
    def run(*arguments, **options):
        return CliRunner().invoke(
            app, [str(argument) for argument in arguments], env={"ECHO_SKA_DEBUG": "0"}, **options
        )

    return run


@pytest.fixture
def refused(run):
    """Runs a command that must end in one sentence with these words."""

    def refused(words, *arguments, **options):
        result = run(*arguments, **options)
        assert result.exit_code == 1, result.output
        assert words in result.stderr
        assert result.stderr.count("\n") == 1
        assert "Traceback" not in result.output
        assert result.stdout == ""

    return refused
