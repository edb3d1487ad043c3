"""EchoForCausalLM as a Hugging Face model, over its kinds of layers."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, DataCollatorWithFlattening, PreTrainedModel

from echo_ska.models import EchoCache, EchoConfig, EchoForCausalLM, EchoModel

KINDS = {
    "ssm": {"ska_layers": []},
    "ssm+attention": {"attention_layers": [1]},
    "ssm+ska": {"ska_layers": [1]},
    "peers": {
        "layer_types": ["linear_attention", "delta_net", "gated_delta_net", "gla", "rwkv7"],
        "num_hidden_layers": 5,
    },
    "refresh": {"ska_layers": [1], "refresh_interval": 8},
    "koopman": {"ska_layers": [1], "feed_forward": "koopman-gated"},
    "more peers": {
        "layer_types": ["based", "mesa_net", "mamba3", "mamba3-paper", "sliding_attention"],
        "num_hidden_layers": 5,
        "sliding_window": 8,
    },
}


@pytest.fixture(params=KINDS)
def model(request):
    torch.manual_seed(0)
    return tiny(**KINDS[request.param]).eval()


def tiny(**fields):
    sizes = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 3, "num_heads": 2, "rank": 8, "state_size": 8}
    return EchoForCausalLM(EchoConfig(**(sizes | fields)))


def ids(batch, time):
    return torch.randint(0, 50, (batch, time), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("cuts", [(1,), (2, 9, 30), (39,)], ids=str)
def test_cached_equals_uncached(model, cuts):
    tokens = ids(2, 40)
    whole = model(tokens, use_cache=False)
    assert whole.past_key_values is None
    logits, cache = [], None
    for begin, end in zip((0, *cuts), (*cuts, 40), strict=True):
        output = model(tokens[:, begin:end], past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        logits.append(output.logits)
    assert torch.allclose(torch.cat(logits, dim=1), whole.logits, atol=1e-5)
    assert cache.get_seq_length() == 40


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(model, side):
    tokens = ids(2, 20)
    mask = torch.ones(2, 20, dtype=torch.long)
    where = slice(0, 7) if side == "left" else slice(13, 20)
    mask[0, where] = 0
    output = model(tokens, attention_mask=mask, use_cache=True)
    alone = model(tokens[:1, mask[0].bool()], use_cache=True)
    assert torch.allclose(output.logits[0, mask[0].bool()], alone.logits[0], atol=1e-5)
    assert torch.allclose(output.logits[1], model(tokens[1:]).logits[0], atol=1e-5)
    follow = model(ids(2, 1), past_key_values=output.past_key_values, attention_mask=torch.ones(2, 21))
    follow_alone = model(ids(2, 1)[:1], past_key_values=alone.past_key_values)
    assert torch.allclose(follow.logits[0], follow_alone.logits[0], atol=1e-5)


def test_tokens_without_a_batch_are_refused_with_a_sentence(model):
    with pytest.raises(ValueError, match=r"input_ids must be \[batch, time\], got \[3\]"):
        model(torch.tensor([1, 2, 3]))
    layer = model.model.layers[0].mixer
    with pytest.raises(ValueError, match=r"hidden_states must be \[batch, time, hidden_size\], got \[9, 32\]"):
        layer(torch.randn(9, 32))


def test_packed_documents_do_not_bleed(model):
    tokens = ids(1, 30)
    packed = model(tokens, cu_seqlens=torch.tensor([0, 11, 30])).logits
    separate = torch.cat([model(tokens[:, :11]).logits, model(tokens[:, 11:]).logits], dim=1)
    assert torch.allclose(packed, separate, atol=1e-5)


def test_save_and_load(model, tmp_path):
    tokens = ids(2, 12)
    model.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors", ""}
    assert (tmp_path / "SHA256SUMS").read_text().split()[1:] == ["model.safetensors"]
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "echo_ska"
    for loader in (EchoForCausalLM, AutoModelForCausalLM):
        loaded = loader.from_pretrained(tmp_path)
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize("tied", [False, True])
def test_heads_survive_saving_tied_or_not(tied, tmp_path):
    model = tiny(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    loaded = EchoForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    for each in (model, loaded):
        assert (each.lm_head.weight.data_ptr() == each.model.embed_tokens.weight.data_ptr()) == tied


@pytest.mark.parametrize("loader", [EchoModel, EchoForCausalLM, AutoModelForCausalLM])
def test_fields_given_on_loading_are_checked(loader, tmp_path):
    tiny(ska_layers=[1]).save_pretrained(tmp_path)
    for fields, message in (
        ({"mixer_dropout": [0.5]}, "mixer_dropout must be a list of 3 numbers, one a layer, or None, got [0.5]"),
        ({"mixer_dropout": 0.5}, "mixer_dropout must be a list of 3 numbers, one a layer, or None, got 0.5"),
        ({"mixer_dropout": [0.5, 0, 0, 0.9]}, "mixer_dropout must be a list of 3 numbers"),
        ({"mixer_dropout": [0.5, 0, 1]}, "mixer_dropout[2] must be a number of at least 0 and below 1, got 1"),
        ({"power": -3}, "power must be an integer >= 0, got -3"),
        ({"num_hidden_layers": 2}, "layer_types names 3 layers, num_hidden_layers is 2"),
        ({"feed_forward": "x"}, "feed_forward is 'x': choose from swiglu"),
        ({"gate_dropout": 1.5}, "gate_dropout must be a number of at least 0 and below 1, got 1.5"),
        ({"layer_types": ["ska", "mamba2", "mamba2"]}, "layer 0 of 3 is SKA"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            loader.from_pretrained(tmp_path, **fields)
    assert loader.from_pretrained(tmp_path, mixer_dropout=[0.5, 0, 0]).config.mixer_dropout == [0.5, 0, 0]


@pytest.mark.parametrize("tied", [False, True])
def test_an_untrained_model_is_near_a_uniform_guess(tied):
    torch.manual_seed(0)
    model = tiny(tie_word_embeddings=tied, ska_layers=[1], hidden_size=128)
    tokens = ids(4, 60)
    assert float(model(tokens, labels=tokens).loss.detach()) == pytest.approx(math.log(50), abs=0.4)


def test_loading_overwrites_no_trained_parameter(tmp_path):
    """Hugging Face initialises again after loading; parameters far from any start must survive it."""
    model = tiny(ska_layers=[1], feed_forward="koopman")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) + 3)
    model.save_pretrained(tmp_path)
    loaded = EchoForCausalLM.from_pretrained(tmp_path)
    for (name, found), expected in zip(loaded.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(found, expected), name


def test_damaged_weights_are_refused(tmp_path):
    model = tiny(ska_layers=[1])
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    for position in (3, 700, len(whole) // 2, len(whole) - 1):
        data = bytearray(whole)
        data[position] ^= 0x10
        path.write_bytes(data)
        for loader in (EchoForCausalLM, AutoModelForCausalLM):
            with pytest.raises(
                ValueError, match=r"model.safetensors are damaged \(they do not match SHA256SUMS\): save"
            ):
                loader.from_pretrained(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=r"is not whole: .*model.safetensors is missing"):
        EchoForCausalLM.from_pretrained(tmp_path)
    path.write_bytes(whole[:-1])
    model.save_pretrained(tmp_path)  # saving again mends it
    EchoForCausalLM.from_pretrained(tmp_path)
    (tmp_path / "SHA256SUMS").unlink()  # as folders of other tools have none
    EchoForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("upload_works", [True, False])
def test_sums_are_uploaded_with_the_weights_they_are_of(tmp_path, monkeypatch, upload_works):
    uploaded = {}

    def upload(self, folder, repo_id, files_timestamps, **settings):
        for path in map(Path, sorted(os.listdir(folder))):
            whole = (folder / path).read_bytes()
            if path.name not in files_timestamps or uploaded.get(path.name) != whole:
                uploaded[path.name] = whole
        if not upload_works:
            raise ConnectionError("no network")

    hub = SimpleNamespace(create_repo=lambda *arguments, **settings: SimpleNamespace(repo_id="somebody/model"))
    card = SimpleNamespace(save=lambda path: Path(path).write_text("card"))
    monkeypatch.setattr("transformers.modeling_utils.hf_api", lambda *arguments, **settings: hub)
    monkeypatch.setattr("transformers.modeling_utils.create_and_tag_model_card", lambda *arguments, **settings: card)
    monkeypatch.setattr(PreTrainedModel, "_upload_modified_files", upload)
    model = tiny()
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    with contextlib.nullcontext() if upload_works else pytest.raises(ConnectionError):
        model.save_pretrained(folder, push_to_hub=True)
    (tmp_path / "remote").mkdir()
    for name, whole in uploaded.items():
        (tmp_path / "remote" / name).write_bytes(whole)
    assert "SHA256SUMS" in uploaded
    for place in (folder, tmp_path / "remote"):
        assert torch.equal(EchoForCausalLM.from_pretrained(place).lm_head.weight, model.lm_head.weight)


def test_a_saving_that_ends_early_leaves_no_sums_of_other_weights(tmp_path, monkeypatch):
    model = tiny()
    model.save_pretrained(tmp_path)

    def fail(*arguments, **settings):
        raise OSError("the disk is full")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", fail)
    with pytest.raises(OSError, match="the disk is full"):
        model.save_pretrained(tmp_path)
    assert not (tmp_path / "SHA256SUMS").exists()


def test_weights_in_several_files_are_held_to_their_sums(tmp_path):
    model = tiny(ska_layers=[1])
    model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    names = (tmp_path / "model" / "SHA256SUMS").read_text().split()[1::2]
    assert len(names) > 3
    loaded = EchoForCausalLM.from_pretrained(tmp_path, subfolder="model")
    assert torch.equal(loaded(ids(1, 9)).logits, model(ids(1, 9)).logits)
    for name in names:
        path = tmp_path / "model" / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(ValueError, match="are damaged"):
            EchoForCausalLM.from_pretrained(tmp_path, subfolder="model")
        path.write_bytes(whole)


def test_the_residual_stream_starts_with_unit_size_tokens():
    torch.manual_seed(0)
    model = tiny(ska_layers=[1], hidden_size=64, vocab_size=500)
    embedded = model.model.embed_tokens(torch.arange(500)).detach()
    assert float(embedded.square().mean().sqrt()) == pytest.approx(1.0, abs=0.05)
    out = model.model.layers[0].mixer.out_proj.weight
    assert float(out.std()) == pytest.approx((3 * 128) ** -0.5 / 6**0.5, rel=0.05)
    assert torch.equal(model.model.layers[1].mixer.qkv.q_proj.weight, model.model.layers[1].mixer.qkv.k_proj.weight)


def test_loss_is_the_shifted_cross_entropy(model):
    tokens = ids(2, 15)
    labels = tokens.clone()
    labels[0, 3:9] = -100
    output = model(tokens, labels=labels)
    expected = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert torch.allclose(output.loss, expected, atol=1e-6)


def test_the_forward_options(model):
    tokens = ids(2, 10)
    whole = model(tokens, output_hidden_states=True)
    assert len(whole.hidden_states) == model.config.num_hidden_layers + 1
    assert torch.allclose(model(tokens, logits_to_keep=1).logits[:, 0], whole.logits[:, -1], atol=1e-6)
    assert torch.equal(model(tokens, return_dict=False)[0], whole.logits)
    embedded = model(inputs_embeds=model.get_input_embeddings()(tokens))
    assert torch.allclose(embedded.logits, whole.logits, atol=1e-6)


def test_gradient_checkpointing_changes_no_gradient(model):
    tokens = ids(2, 20)
    model.train()
    model(tokens, labels=tokens).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model(tokens, labels=tokens).loss.backward()
    for name, parameter in model.named_parameters():
        if name in expected:
            assert torch.allclose(parameter.grad, expected[name], atol=1e-6), name


def test_state_bytes_are_those_of_the_live_cache(model):
    for length in (1, 33):
        cache = model(ids(1, length), use_cache=True).past_key_values
        assert cache.nbytes == model.state_bytes(length)


def test_greedy_generation_equals_the_uncached_argmax(model):
    prompt = ids(2, 9)
    found = model.generate(prompt, max_new_tokens=12, do_sample=False)
    tokens = prompt
    for _ in range(12):
        tokens = torch.cat([tokens, model(tokens, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(found, tokens)


def test_half_precision_keeps_steering_parameters_in_float32(tmp_path):
    model = tiny(ska_layers=[1])
    model.save_pretrained(tmp_path)
    loaded = EchoForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.model.layers[0].mixer.A_log.dtype is torch.float32
    assert loaded.model.layers[1].mixer.raw_ridge.dtype is torch.float32
    assert loaded.lm_head.weight.dtype is torch.bfloat16
    assert loaded(ids(1, 20)).logits.isfinite().all()
    made = AutoModelForCausalLM.from_config(model.config, dtype=torch.bfloat16)
    dtypes = {name: parameter.dtype for name, parameter in loaded.named_parameters()}
    assert {name: parameter.dtype for name, parameter in made.named_parameters()} == dtypes
    assert made(ids(1, 20)).logits.isfinite().all()
    published = tiny(layer_types=["mamba2", "ska-paper", "mamba2"])
    published.save_pretrained(tmp_path / "paper")
    loaded = EchoForCausalLM.from_pretrained(tmp_path / "paper", dtype=torch.bfloat16)
    assert loaded.model.layers[1].mixer.scale.dtype is torch.float32
    assert loaded(ids(1, 20), use_cache=False).logits.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give either input_ids or inputs_embeds"),
        ({"input_ids": ids(2, 5), "attention_mask": torch.ones(2, 4)}, r"attention_mask must be \[2, 5\]"),
        (
            {"input_ids": ids(2, 5), "past_key_values": EchoCache(EchoConfig(hidden_size=32, num_heads=2, rank=9))},
            "the cache of another model: layer_types .* rank 9 there, 8 here",
        ),
        ({"input_ids": ids(2, 5), "past_key_values": ()}, "past_key_values must be an EchoCache, got tuple"),
    ],
)
def test_inputs_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny()(**arguments)


def test_a_call_that_fails_leaves_the_cache_as_it_was():
    model = tiny(ska_layers=[1]).eval()
    cache = model(ids(1, 6)).past_key_values
    before = [layer.state.clone() for layer in cache.layers]
    broken = model.get_input_embeddings()(ids(1, 3)).detach()
    broken[0, 1] = float("nan")
    with pytest.raises(ValueError, match="holds nan first at batch 0, time"):
        model(inputs_embeds=broken, past_key_values=cache)
    assert cache.get_seq_length() == 6
    for layer, state in zip(cache.layers, before, strict=True):
        assert all(torch.equal(state.tensors()[name], tensor) for name, tensor in layer.state.tensors().items())


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(2, 9), r"attention_mask must be \[2, 5\], got \[2, 9\]"),
        (torch.zeros(2, 5).masked_fill(torch.arange(5) < 2, -1e9), "an additive mask is not read"),
    ],
)
def test_masks_of_another_kind_are_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        tiny()(ids(2, 5), attention_mask=mask)


def test_restarting_positions_without_boundaries_are_refused():
    model = tiny().eval()
    positions = torch.tensor([[0, 1, 2, 0, 1]])
    with pytest.raises(ValueError, match="position_ids restart inside a row: give the boundaries"):
        model(ids(1, 5), position_ids=positions)
    with pytest.raises(ValueError, match="position_ids restart inside a row"):
        model(ids(1, 5), position_ids=torch.tensor([[0, 0, 1, 2, 3]]))  # the first sequence has one token
    model(ids(1, 5), position_ids=positions, cu_seqlens=torch.tensor([0, 3, 5]))
    model(ids(1, 5), position_ids=torch.arange(5)[None])


@pytest.mark.parametrize(
    "settings",
    [
        {"return_flash_attn_kwargs": True},
        {"return_flash_attn_kwargs": True, "return_position_ids": False},
        {"return_seq_idx": True},
        {"return_seq_idx": True, "return_position_ids": False, "return_flash_attn_kwargs": True},
    ],
    ids=lambda settings: ", ".join(settings),
)
def test_boundaries_by_hugging_faces_names(settings):
    model = tiny(ska_layers=[1]).eval()
    parts = ids(1, 20).split([7, 1, 12], dim=1)
    batch = DataCollatorWithFlattening(**settings)([{"input_ids": part[0]} for part in parts])
    with torch.no_grad():
        found = model(**batch)
        expected = torch.cat([model(part).logits for part in parts], dim=1)
        alone = torch.stack([model(part, labels=part).loss for part in parts if part.shape[1] > 1])
    assert torch.allclose(found.logits, expected, atol=1e-5)
    assert torch.allclose(found.loss, (alone * torch.tensor([6.0, 11.0])).sum() / 17, atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "given", "message"),
    [
        (1, {"cu_seqlens": [0, 3, 5], "cu_seq_lens_q": [0, 2, 5]}, "cu_seqlens and cu_seq_lens_q divide the row"),
        (1, {"cu_seq_lens_q": [0, 3, 5], "seq_idx": [[0, 0, 1, 1, 1]]}, "cu_seq_lens_q and seq_idx divide the row"),
        (1, {"seq_idx": [0, 0, 1, 1, 1]}, r"seq_idx must be \[1, 5\].* got \[5\]"),
        (2, {"seq_idx": [[0, 0, 1, 1, 1]] * 2}, r"seq_idx must be \[1, 5\].* concatenate the rows along time"),
        (2, {"cu_seq_lens_q": [0, 3, 5]}, "packed batch of 1 row, got 2"),
    ],
)
def test_boundaries_that_do_not_fit(rows, given, message):
    with pytest.raises(ValueError, match=message):
        tiny()(ids(rows, 5), **{name: torch.tensor(boundaries) for name, boundaries in given.items()})


def test_a_model_with_the_paper_layer_runs_without_a_cache():
    model = tiny(layer_types=["mamba2", "ska-paper", "mamba2"]).eval()
    assert not model.has_state
    assert model(ids(1, 70)).past_key_values is None
    with pytest.raises(ValueError, match="has no state: run it on whole sequences with use_cache=False"):
        model(ids(1, 5), use_cache=True)
    with pytest.raises(ValueError, match="has no state, and so no bytes"):
        model.state_bytes(5)


def test_reentrant_gradient_checkpointing_runs():
    model = tiny(ska_layers=[1]).train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.enable_input_require_grads()
    model(ids(2, 9), labels=ids(2, 9)).loss.backward()
    assert model.model.layers[0].mixer.in_proj.weight.grad is not None


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_blocks_lose_no_gradient_of_a_state(reentrant):
    """What is written in one call and read in the next reaches the loss through the cache alone."""
    model, tokens = tiny(ska_layers=[1]).train(), ids(1, 16)

    def loss():
        cache = EchoCache(model.config)
        output = [model(part, labels=part, past_key_values=cache, use_cache=True) for part in tokens.split(8, dim=1)]
        return output[0].loss + output[1].loss

    loss().backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    if reentrant:
        with pytest.raises(ValueError, match="reentrant gradient checkpointing passes no gradient through past_key"):
            loss()
        with torch.no_grad():
            assert loss().isfinite()
        return
    loss().backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, expected[name], atol=1e-5), name


def test_use_cache_of_the_configuration_is_honoured():
    model = tiny(use_cache=False).eval()
    assert model(ids(1, 5)).past_key_values is None
    assert model(ids(1, 5), use_cache=True).past_key_values is not None
