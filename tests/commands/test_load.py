"""Folders that were edited by hand, and folders that bring code of their own, which is never run."""

import io
import json
import re
import shutil
import sys

import pytest
from transformers import AutoModelForCausalLM

from echo_ska.commands.convert import load_host
from echo_ska.commands.load import load_model, load_tokenizer
from echo_ska.convert import load_converted
from echo_ska.corpus import CorpusTokenizer
from echo_ska.models import EchoForCausalLM

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


EDITS = {
    "hidden_size": ({"hidden_size": 64}, "model.embed_tokens.weight", [256, 32], [256, 64], 47),
    "num_heads": ({"num_heads": 4}, "model.layers.1.mixer.raw_ridge", [2], [4], 15),
    "vocab_size": ({"vocab_size": 300}, "model.embed_tokens.weight", [256, 32], [300, 32], 1),
}


def edited(model_folder, tmp_path, fields):
    folder = shutil.copytree(model_folder, tmp_path / "edited")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    return folder


@pytest.mark.parametrize("edit", EDITS)
def test_a_configuration_of_other_shapes_names_the_first(model_folder, refused, tmp_path, capfd, edit):
    fields, name, saved, wanted, more = EDITS[edit]
    folder = edited(model_folder, tmp_path, fields)
    said = (
        f"he weights in {folder} do not fit its config.json: {name} is {saved} in them and {wanted} by the "
        f"configuration ({more} more differ); put back the config.json that was saved with them"
    )
    refused(said, "generate", folder, "--prompt", "x")
    for kind in (EchoForCausalLM, AutoModelForCausalLM):
        with pytest.raises(ValueError, match=re.escape(said)):
            kind.from_pretrained(folder)
    with pytest.raises(RuntimeError, match=re.escape(said)):  # what transformers raises
        EchoForCausalLM.from_pretrained(folder)
    with pytest.raises(ValueError, match=re.escape(said)):
        load_host(folder)
    assert "MISMATCH" not in capfd.readouterr().err


def test_mismatched_sizes_are_ignored_where_that_is_asked_for(model_folder, tmp_path):
    folder = edited(model_folder, tmp_path, {"vocab_size": 300})
    model, found = EchoForCausalLM.from_pretrained(folder, ignore_mismatched_sizes=True, output_loading_info=True)
    assert model.lm_head.weight.shape == (300, 32)
    assert {name for name, _, _ in found["mismatched_keys"]} == {"model.embed_tokens.weight", "lm_head.weight"}


@pytest.mark.parametrize(("layers", "words"), [(3, "the model has no model.layers.3."), (5, "model.layers.4.")])
def test_a_configuration_of_more_or_fewer_layers_is_refused(model_folder, refused, tmp_path, capfd, layers, words):
    kinds = ["mamba2", "ska", "full_attention", "mamba2", "mamba2"][:layers]
    folder = edited(model_folder, tmp_path, {"num_hidden_layers": layers, "mixer_types": kinds})
    refused(words, "generate", folder, "--prompt", "x")
    assert "LOAD REPORT" not in capfd.readouterr().err
