"""Folders that were edited by hand, and folders that bring code of their own, which is never run."""

import io
import json
import re
import shutil
import sys

import pytest

from echo_ska.commands.convert import load_host
from echo_ska.commands.load import load_model, load_tokenizer
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


@pytest.mark.parametrize(
    ("file", "fields", "words"),
    [
        ("config.json", {"mixer_types": 4}, "layer_types must be a list of names, one a layer, got 4"),
        ("config.json", {"mixer_types": [["mamba2"]] * 4}, "layer_types[0] is ['mamba2']: choose from mamba2"),
        ("config.json", {"feed_forward": ["x"]}, "feed_forward is ['x']: choose from swiglu"),
        ("config.json", {"dtype": "floaty"}, "dtype must be a floating-point type of torch"),
        ("config.json", {"rank": "8"}, "rank must be an integer >= 1, got '8'"),
        ("config.json", {"id2label": 5}, "'int' object has no attribute 'items'"),  # transformers' own words
        ("config.json", {"model_type": None}, "it has no model_type"),
        ("config.json", [1], "it must be a JSON object"),
        ("config.json", "{", "it is not JSON (Expecting property name"),
        ("config.json", "[" * 100_000, "it is not JSON (maximum recursion depth"),
        ("generation_config.json", [1], "it must be a JSON object"),
        ("generation_config.json", {"cache_implementation": 4}, "Invalid `cache_implementation` (4)"),
        ("generation_config.json", '{"eos_token_id": 0,}', "it is not JSON ("),
    ],
)
def test_a_file_that_was_edited_wrongly_is_named_in_one_sentence(model_folder, refused, tmp_path, file, fields, words):
    folder = shutil.copytree(model_folder, tmp_path / "edited")
    path = folder / file
    if isinstance(fields, dict):
        fields = json.loads(path.read_text()) | fields
    path.write_text(fields if isinstance(fields, str) else json.dumps(fields))
    what = "a model" if file == "config.json" else "how a model generates"
    refused(f"{path} does not describe {what}: ", "generate", folder, "--prompt", "x")
    with pytest.raises(ValueError, match=re.escape(words)):
        load_model(folder, "cpu")


def test_a_model_needs_no_generation_config(model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "edited")
    (folder / "generation_config.json").unlink()
    assert load_model(folder, "cpu").config.rank == 8
