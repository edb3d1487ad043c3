"""Choosing layers, counting parameters, refusing what does not fit, saving and loading."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys

import pytest
import torch
from host_models import HOSTS, host, tokens
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from echo_ska.convert import ReplacedAttention, load_converted, replace_attention
from echo_ska.convert.classes import FIELD
from echo_ska.convert.measure import cache_bytes
from echo_ska.convert.replace import cast_converted, chosen_layers, replaced_attentions


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        (None, (0, 1, 2, 3, 4)),
        ("all", (0, 1, 2, 3, 4)),
        ("every 2nd", (1, 3)),
        ("every 3rd", (2,)),
        ("3, 1", (1, 3)),
        ([4, 0, 4], (0, 4)),
    ],
)
def test_layers_can_be_named_in_several_ways(asked, wanted):
    assert chosen_layers(asked, 5) == wanted


@pytest.mark.parametrize("asked", [[], [5], [-1], "every 9th", "every 0th", "half", "1,5"])
def test_layers_that_do_not_exist_are_refused(asked):
    with pytest.raises(ValueError, match="layers must"):
        chosen_layers(asked, 5)


@pytest.mark.parametrize("asked", [[True], [1, True], [False], [1.0], [1, 1.0], [[1]], ["1"], [None], 1, True, 2.5])
def test_what_is_no_list_of_whole_numbers_is_refused(asked):
    with pytest.raises(ValueError, match=r"layers must name at least one of 0 to 4, as in \[0, 2\], got "):
        chosen_layers(asked, 5)


@pytest.mark.parametrize("init", ["carry", "fresh"])
@pytest.mark.parametrize("name", HOSTS)
def test_parameters_are_counted(name, init):
    model = host(name)
    before = sum(parameter.numel() for parameter in model.parameters())
    report = replace_attention(model, [0, 2], init=init, rank=5)
    assert report.layers == (0, 2)
    assert sum(parameter.numel() for parameter in model.parameters()) == (
        before - report.removed + report.carried + report.new
    )
    assert (report.carried > 0) == (init == "carry")
    assert list(replaced_attentions(model)) == [0, 2]
    tokens_needed = report.break_even
    assert report.state_bytes < tokens_needed * report.kv_bytes_per_token
    assert report.state_bytes >= (tokens_needed - 1) * report.kv_bytes_per_token


def test_what_is_refused_leaves_the_model_as_it_was():
    model = host("llama")
    before = copy.deepcopy(model.state_dict())
    for settings, sentence in (
        ({"init": "warm"}, "init must be"),
        ({"layers": [3]}, "layers must name"),
        ({"rank": 9}, "between 1 and the head's width 8"),
        ({"causal": False}, "go on from a state"),
        ({"init": "fresh", "rank": 0}, "rank must be a whole number of at least 1"),
        ({"rank": 2.5}, "rank must be a whole number of at least 1"),
        ({"powr": 1}, "powr is no setting of SpectralKoopmanAttention: choose from blended, causal"),
        ({"num_heads": 3}, "num_heads follows from the model"),
        ({"layers": ["0"]}, "layers must name"),
        ({"layers": [True]}, r"layers must name .*, got \[True\]"),
        ({"power": -1}, "power must be an integer >= 0"),
        ({"init": "fresh", "refresh_interval": 0}, "refresh_interval must be an integer >= 1 or None"),
        ({"initial_ridge": float("inf")}, "initial_ridge must be at least"),
    ):
        with pytest.raises(ValueError, match=sentence):
            replace_attention(model, **settings)
        assert list(model.state_dict()) == list(before)
        assert not hasattr(model.config, FIELD)
    replace_attention(model, [1])
    with pytest.raises(ValueError, match="layer 1 is SKA already"):
        replace_attention(model, "all")
    assert list(replaced_attentions(model)) == [1]


@pytest.mark.parametrize("name", HOSTS)
@torch.no_grad()
def test_a_saved_model_is_loaded_with_the_same_logits_and_dtypes(name, tmp_path):
    model = host(name)
    replace_attention(model, [0], rank=5)
    replace_attention(model, [2], init="fresh", rank=7, power=0)
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    assert [part["layers"] for part in json.loads((tmp_path / "config.json").read_text())[FIELD]] == [[0], [2]]
    ids = tokens(2, 15)
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    for load in (load_converted, AutoModelForCausalLM.from_pretrained):
        loaded = load(tmp_path)
        assert type(loaded) is type(model)
        assert type(loaded).__name__ == f"Ska{type(host(name)).__name__}"
        assert torch.equal(loaded(ids, use_cache=False).logits, model(ids, use_cache=False).logits)
        assert getattr(loaded.config, FIELD) == getattr(model.config, FIELD)
        assert (loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight) == tied
    assert load_converted(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16
    replace_attention(loaded, [1])  # and so on from there
    assert list(replaced_attentions(loaded)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("edited", "sentence"),
    [
        ("yes", "must be a list of layers, rank, init and settings: 'yes'"),
        ([{"layers": [0], "init": "carry", "settings": {}}], "must be a list of layers, rank"),
        ([{"layers": [9], "rank": 8, "init": "carry", "settings": {}}], "names layer 9, but there are 0 to 2"),
        ([{"layers": [-3], "rank": 8, "init": "carry", "settings": {}}], "names layer -3, but there are 0 to 2"),
        ([{"layers": [0, 0], "rank": 8, "init": "carry", "settings": {}}], "names layer 0 twice"),
        ([{"layers": [0], "rank": 8, "init": "carry", "settings": {"foo": 1}}], "settings that are none: .*'foo'"),
        (None, "config.json does not describe a model"),
    ],
)
def test_an_edited_configuration_is_refused_in_one_sentence(edited, sentence, tmp_path):
    model = host("llama")
    replace_attention(model, [0])
    model.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text("{" if edited is None else json.dumps(json.loads(config.read_text()) | {FIELD: edited}))
    with pytest.raises(ValueError, match=sentence):
        load_converted(tmp_path)


def test_without_this_package_a_converted_model_is_of_no_known_type(tmp_path):
    model = host("llama")
    replace_attention(model, [1])
    model.save_pretrained(tmp_path)
    code = f"""
from transformers import AutoModelForCausalLM
try:
    AutoModelForCausalLM.from_pretrained({str(tmp_path)!r})
except ValueError as error:
    print(str(error).splitlines()[0])
import echo_ska.convert
print(type(AutoModelForCausalLM.from_pretrained({str(tmp_path)!r})).__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    refused, loaded = done.stdout.splitlines()
    assert "`ska-llama` but Transformers does not recognize this architecture" in refused
    assert loaded == "SkaLlamaForCausalLM"


@torch.no_grad()
def test_a_configuration_that_another_model_shares_stays_as_it_is(tmp_path):
    teacher = host("llama")
    student = LlamaForCausalLM(teacher.config)
    student.load_state_dict(teacher.state_dict())
    replace_attention(student, [1])
    assert type(teacher.config) is LlamaConfig
    assert not hasattr(teacher.config, FIELD)
    assert student.model.config is student.config
    teacher.save_pretrained(tmp_path)
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path)) is LlamaForCausalLM


@torch.no_grad()
def test_parameters_that_a_file_lacks_start_as_they_should(tmp_path):
    model = host("llama")
    replace_attention(model, [1])
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    mixer = "model.layers.1.self_attn.mixer"
    lost = [f"{mixer}.{name}" for name in ("raw_ridge", "gain", "gate_proj.bias", "qkv.convolution.weight")]
    save_file({name: weights[name] for name in weights if name not in lost}, tmp_path / "model.safetensors")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    fresh = host("llama")
    replace_attention(fresh, [1])  # whose convolution starts as the identity, its ridge at 1
    for name, parameter in loaded.named_parameters():
        wanted = fresh if name in lost else model
        assert torch.equal(parameter, wanted.get_parameter(name)), name
    with pytest.raises(ValueError, match="not those of this model"):
        load_converted(tmp_path)


def test_it_can_be_pickled():
    model = host("gpt2")
    replace_attention(model)
    again = pickle.loads(pickle.dumps(model))
    assert type(again) is type(model)
    ids = tokens(1, 9)
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert pickle.loads(pickle.dumps(model.config)).to_dict() == model.config.to_dict()


@torch.no_grad()
def test_layers_that_are_offloaded_are_read_token_by_token(tmp_path):
    model = host("llama")
    replace_attention(model, [0])
    model.save_pretrained(tmp_path / "model")
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    places |= {f"model.layers.{layer}": "disk" if layer == 0 else "cpu" for layer in range(3)}
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=tmp_path / "offloaded"
    )
    ids = tokens(1, 6)
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(loaded.generate(ids, **settings), model.generate(ids, **settings))


def test_half_precision_and_shards_are_loaded_as_they_were_saved(tmp_path):
    model = host("llama").to(torch.bfloat16)
    replace_attention(model)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = load_converted(tmp_path)
    for (name, wanted), found in zip(model.named_parameters(), loaded.parameters(), strict=True):
        assert found.dtype == wanted.dtype, name
        assert torch.equal(found, wanted), name


@torch.no_grad()
def test_a_cast_model_is_what_would_be_loaded_in_that_dtype(tmp_path):
    model = host("qwen2")
    replace_attention(model, [0], rank=5)
    report = replace_attention(model, [2], rank=6)
    before = copy.deepcopy(model)
    before.save_pretrained(tmp_path)
    report = cast_converted(model, torch.bfloat16, report)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    for (name, wanted), found in zip(loaded.named_parameters(), model.parameters(), strict=True):
        assert found.dtype == wanted.dtype, name
        assert torch.equal(found, wanted), name
    cache = model(tokens(1, 20), use_cache=True).past_key_values
    assert report.cache_bytes(20)[1] == cache_bytes(cache)
    in_half = host("qwen2").to(torch.bfloat16)
    replace_attention(in_half, [0], rank=5)
    assert report == replace_attention(in_half, [2], rank=6)


def test_folders_that_hold_no_converted_model_are_refused(tmp_path):
    with pytest.raises(ValueError, match="it has no config"):
        load_converted(tmp_path)
    model = host("llama")
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no attention was replaced"):
        load_converted(tmp_path)
    replace_attention(model, [0])
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config[FIELD][0]["layers"] = [1]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="not those of this model"):
        load_converted(tmp_path)
    config[FIELD][0] |= {"layers": [0], "rank": config[FIELD][0]["rank"] + 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"do not fit its config.json: model.layers.0.self_attn.mixer.*; put back"):
        load_converted(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ValueError, match="cannot be read"):
        load_converted(tmp_path)
    weights.unlink()
    with pytest.raises(ValueError, match=r"weights are missing in .*: save the model again"):
        load_converted(tmp_path)


def test_a_replaced_layer_keeps_its_dropout_and_training_state():
    model = host("gpt2").train()
    model.transformer.h[1].attn.resid_dropout.p = 0.25
    replace_attention(model, [1])
    layer = model.transformer.h[1].attn
    assert isinstance(layer, ReplacedAttention)
    assert layer.training
    assert layer.dropout.p == 0.25
