"""EchoConfig: its shorthand, and what it refuses."""

from __future__ import annotations

import inspect
import json

import pytest
import torch
from transformers import AutoConfig, PreTrainedConfig

from echo_ska.memory.fingerprint import model_fingerprint
from echo_ska.models import EchoConfig, EchoForCausalLM
from echo_ska.training.resume import describe_model


def test_layer_types_and_their_shorthand():
    config = EchoConfig(num_hidden_layers=5, ska_layers=[1, 3], attention_layers=[2])
    assert config.layer_types == ["mamba2", "ska", "full_attention", "ska", "mamba2"]
    spelled = EchoConfig(num_hidden_layers=5, layer_types=["mamba2", "ska", "attention", "ska", "mamba2"])
    assert spelled.layer_types == config.layer_types


def test_it_survives_saving(tmp_path):
    config = EchoConfig(num_hidden_layers=3, ska_layers=[1], power=0, vocab_size=77, tie_word_embeddings=False)
    config.save_pretrained(tmp_path)
    loaded = EchoConfig.from_pretrained(tmp_path)
    assert loaded.to_diff_dict() == config.to_diff_dict()
    assert loaded.layer_types == ["mamba2", "ska", "mamba2"]
    assert loaded.tie_word_embeddings is False


def test_it_has_the_token_ids_that_every_configuration_has(tmp_path):
    config = EchoConfig()
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (None, None, None)
    EchoConfig(pad_token_id=3, eos_token_id=[1, 2]).save_pretrained(tmp_path)
    read = EchoConfig.from_pretrained(tmp_path)
    assert (read.pad_token_id, read.bos_token_id, read.eos_token_id) == (3, None, [1, 2])


def test_its_file_is_read_by_what_knows_no_echo(tmp_path):
    """As transformers does before it knows whose the file is: for a tokenizer, and where the Trainer resumes."""
    EchoConfig(ska_layers=[1], vocab_size=77).save_pretrained(tmp_path)
    foreign = PreTrainedConfig.from_json_file(tmp_path / "config.json")
    assert foreign.mixer_types == ["mamba2", "ska", "mamba2", "mamba2"]
    assert "layer_types" not in json.loads((tmp_path / "config.json").read_text())


def test_layer_types_go_by_two_names_in_files(tmp_path):
    config = EchoConfig(num_hidden_layers=3, layer_types=["mamba2", "ska", "full_attention"])
    described = config.to_dict()
    assert "mixer_types" not in described  # records describe models by it
    config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    written = json.loads(path.read_text())
    older = {name: value for name, value in written.items() if name != "mixer_types"}
    spelled = [*config.layer_types[:2], "attention"]
    for fields in (written, older | {"layer_types": spelled}, written | {"layer_types": spelled}):
        path.write_text(json.dumps(fields))
        for loader in (EchoConfig, AutoConfig):
            assert loader.from_pretrained(tmp_path).to_diff_dict() == config.to_diff_dict()
    assert EchoConfig.from_dict(described).to_dict() == described
    other = ["mamba2"] * 3
    assert EchoConfig.from_pretrained(tmp_path, mixer_types=other).layer_types == other
    path.write_text(json.dumps(written | {"layer_types": other}))
    with pytest.raises(ValueError, match="they are two names of one field, give one"):
        EchoConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "idle"), [("gate_dropout", 0.3, 0), ("mixer_dropout", [0.3, 0.0, 0.0, 0.0], None)]
)
def test_dropout_is_of_the_training_alone(name, value, idle):
    def built(**fields):
        torch.manual_seed(0)
        return EchoForCausalLM(EchoConfig(hidden_size=16, num_heads=2, rank=4, ska_layers=[1], **fields))

    plain, dropped = built(), built(**{name: value})
    assert model_fingerprint(plain) == model_fingerprint(dropped)  # a saved context goes on in either
    assert name not in describe_model(plain)  # as in records from before there was one
    assert describe_model(dropped)[name] == value  # a training is not resumed with another
    older = {field: held for field, held in plain.config.to_dict().items() if field != name}
    assert getattr(EchoConfig.from_dict(older), name) == idle


def test_dropout_reaches_the_layers():
    model = EchoForCausalLM(
        EchoConfig(hidden_size=16, num_heads=2, rank=4, ska_layers=[1], gate_dropout=0.3, mixer_dropout=[0.5, 0, 0, 0])
    )
    assert model.model.layers[1].mixer.gate_dropout == 0.3
    assert [block.mixer_dropout for block in model.model.layers] == [0.5, 0, 0, 0]
    nothing = EchoConfig(mixer_dropout=[0, 0.0, 0, 0])
    assert "mixer_dropout" in nothing.unread_fields


def test_at_most_about_twenty_fields_of_its_own():
    own = set(inspect.signature(EchoConfig.__init__).parameters) - {"self", "kwargs", "ska_layers", "attention_layers"}
    assert len(own) <= 23


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rnak": 3}, "EchoConfig has no field rnak"),
        ({"ska_layers": [0]}, "layer 0 of 4 is SKA: the first and the last layer are not, unless ska_at_ends=True"),
        ({"ska_layers": [3]}, "layer 3 of 4 is SKA"),
        ({"ska_layers": [4]}, "ska_layers names layer 4, but layers are counted from 0 to 3"),
        ({"ska_layers": [-1]}, "ska_layers names layer -1"),
        ({"ska_layers": [1], "attention_layers": [1]}, "layer 1 is named twice"),
        ({"ska_layers": [1], "layer_types": ["mamba2"] * 4}, "not both"),
        ({"ska_layers": [1], "mixer_types": ["mamba2"] * 4}, "not both"),
        ({"layer_types": ["mamba2"] * 4, "mixer_types": ["gla"] * 4}, "two names of one field"),
        ({"layer_types": 4, "mixer_types": ["gla"] * 4}, "layer_types must be a list of names, one a layer, got 4"),
        ({"layer_types": ["mamba2"] * 3, "num_hidden_layers": 4}, "layer_types names 3 layers, num_hidden_layers is 4"),
        ({"layer_types": ["mamba2", "mamba1", "ska", "mamba2"]}, r"layer_types\[1\] is 'mamba1': choose from mamba2"),
        ({"layer_types": 4}, "layer_types must be a list of names, one a layer, got 4"),
        ({"layer_types": "mamba2"}, "layer_types must be a list of names, one a layer, got 'mamba2'"),
        ({"layer_types": [["mamba2"], *["mamba2"] * 3]}, r"layer_types\[0\] is \['mamba2'\]: choose from mamba2"),
        ({"ska_layers": ["1"]}, "ska_layers names layer '1', but layers are counted from 0 to 3"),
        ({"attention_layers": 0}, "attention_layers must be a list of layers, got 0"),
        ({"num_hidden_layers": "4"}, "num_hidden_layers must be an integer >= 1, got '4'"),
        ({"hidden_size": "128"}, "hidden_size must be an integer >= 1, got '128'"),
        ({"feed_forward": ["x"]}, r"feed_forward is \['x'\]: choose from swiglu"),
        ({"dtype": "floaty"}, "dtype must be a floating-point type of torch, such as 'float32', or None, got 'floaty'"),
        ({"dtype": "int8"}, "dtype must be a floating-point type of torch"),
        ({"torch_dtype": 4}, "torch_dtype must be a floating-point type of torch"),
        ({"hidden_size": 130}, "hidden_size = 130 is not a multiple of num_heads = 4"),
        ({"num_heads": 0}, "num_heads must be an integer >= 1, got 0"),
        ({"rank": 2.5}, "rank must be an integer >= 1, got 2.5"),
        ({"power": -1}, "power must be an integer >= 0, got -1"),
        ({"feed_forward": "relu"}, "feed_forward is 'relu': choose from swiglu"),
        ({"vocab_size": 0}, "vocab_size must be an integer >= 1"),
        ({"intermediate_size": -4}, "intermediate_size must be an integer >= 1 or None, got -4"),
        ({"conv_kernel": 1}, "conv_kernel must be an integer >= 2, got 1"),
        ({"norm_eps": "abc"}, "norm_eps must be a positive number, got 'abc'"),
        ({"rope_theta": 0}, "rope_theta must be a positive number, got 0"),
        ({"gate_dropout": 1}, "gate_dropout must be a number of at least 0 and below 1, got 1"),
        ({"gate_dropout": True}, "gate_dropout must be a number"),
        ({"mixer_dropout": 0.3}, "mixer_dropout must be a list of 4 numbers, one a layer, or None, got 0.3"),
        ({"mixer_dropout": [0.3]}, "mixer_dropout must be a list of 4 numbers"),
        ({"mixer_dropout": [0, 0, 0, 1.0]}, r"mixer_dropout\[3\] must be a number of at least 0 and below 1, got 1.0"),
        ({"blended": "no"}, "blended must be true or false, got 'no'"),
        ({"power": True}, "power must be an integer >= 0, got True"),
        ({"ska_layers": 1}, "ska_layers must be a list of layers, got 1"),
        ({"refresh_interval": 0}, "refresh_interval must be an integer >= 1 or None, got 0"),
        ({"sliding_window": 0}, "sliding_window must be an integer >= 1, got 0"),
    ],
)
def test_what_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        EchoConfig(**fields)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("layer_types", 4, "layer_types must be a list of names, one a layer, got 4"),
        ("layer_types", [["mamba2"]] * 4, r"layer_types\[0\] is \['mamba2'\]"),
        ("feed_forward", {}, "feed_forward is {}: choose from swiglu"),
    ],
)
def test_what_cannot_be_is_refused_later_too(name, value, message):
    config = EchoConfig()
    setattr(config, name, value)
    with pytest.raises(ValueError, match=message):
        config.validate()


@pytest.mark.parametrize("dtype", [None, "bfloat16", torch.float64])
def test_a_dtype_by_name_or_itself(dtype):
    found = EchoConfig(dtype=dtype).dtype
    assert found == (torch.bfloat16 if dtype == "bfloat16" else dtype)


@pytest.mark.parametrize(
    ("fields", "layers"),
    [
        ({}, ["mamba2", "mamba2", "ska", "mamba2"]),
        ({"num_hidden_layers": 3}, ["mamba2", "ska", "mamba2"]),
        ({"num_hidden_layers": 2}, ["mamba2", "mamba2"]),
        ({"ska_layers": []}, ["mamba2"] * 4),
        ({"attention_layers": [1]}, ["mamba2", "full_attention", "mamba2", "mamba2"]),
        (
            {"layer_types": ["mamba2", "attention", "ska", "gla", "mamba2"]},
            ["mamba2", "full_attention", "ska", "gla", "mamba2"],
        ),
    ],
)
def test_what_is_not_said_is_an_echo_of_as_many_layers_as_are_named(fields, layers):
    config = EchoConfig(**fields)
    assert config.layer_types == layers
    assert config.num_hidden_layers == len(layers)


def test_ska_at_the_ends_on_request():
    assert EchoConfig(num_hidden_layers=2, ska_layers=[0, 1], ska_at_ends=True).layer_types == ["ska", "ska"]
