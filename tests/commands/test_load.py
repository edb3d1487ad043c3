"""Folders that bring code of their own: it is never run, whoever answers what."""

import io
import json
import shutil
import sys

import pytest

from echo_ska.commands.convert import load_host
from echo_ska.commands.load import load_tokenizer
from echo_ska.convert import load_converted
from echo_ska.corpus import CorpusTokenizer

CODE = """
from pathlib import Path
Path(__file__).with_name("RAN").touch()
Path({ran!r}).touch()
from transformers import PreTrainedConfig, PreTrainedTokenizerFast, PreTrainedModel
class Config(PreTrainedConfig):
    model_type = "foreign"
class Tokenizer(PreTrainedTokenizerFast):
    pass
class Model(PreTrainedModel):
    config_class = Config
"""
LOADERS = {
    "a corpus": lambda folder: CorpusTokenizer(str(folder)),
    "a model's tokenizer": lambda folder: load_tokenizer(folder, 256),
    "a model to convert": load_host,
    "a converted model": load_converted,
}


@pytest.mark.parametrize("what", LOADERS)
def test_code_in_a_folder_is_not_run_even_with_a_yes(model_folder, tmp_path, monkeypatch, what):
    folder = shutil.copytree(model_folder, tmp_path / "foreign")
    (folder / "foreign.py").write_text(CODE.format(ran=str(tmp_path / "RAN")))
    (folder / "config.json").write_text(
        json.dumps(
            {
                "model_type": "foreign",
                "auto_map": {"AutoConfig": "foreign.Config", "AutoModelForCausalLM": "foreign.Model"},
            }
        )
    )
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Foreign", "auto_map": {"AutoTokenizer": [None, "foreign.Tokenizer"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    with pytest.raises(ValueError, match="brings code of its own, which is not run: name one without"):
        LOADERS[what](folder)
    assert not (tmp_path / "RAN").exists()


def test_a_folder_that_this_package_exported_needs_none_of_its_code(model_folder, run, tmp_path):
    assert run("export", model_folder, tmp_path / "exported").exit_code == 0
    assert load_tokenizer(tmp_path / "exported", 256).eos_token_id == 0
    assert type(load_host(tmp_path / "exported")[0]).__module__ == "echo_ska.models.modeling_echo"
