"""Hugging Face's tools around a model: Trainer, half precision, device maps, PEFT, torchao, torch.compile."""

from __future__ import annotations

import copy

import pytest
import torch
from small_models import KINDS, error, ids, small_model
from torch import nn
from transformers import Trainer, TrainingArguments

from echo_ska.models import EchoForCausalLM
from echo_ska.nn.mamba2 import Mamba2

GREEDY = {"max_new_tokens": 8, "do_sample": False}
# The largest difference of logits that rounding the weights to so many bits may make, in units of the largest logit.
HALF = {torch.bfloat16: 2e-2, torch.float16: 3e-3}


@pytest.fixture(params=KINDS)
def model(request):
    return small_model(request.param)


@torch.no_grad()
def cached_logits(model, tokens):
    """A call with the first half, then token by token."""
    half = tokens.shape[1] // 2
    output = model(tokens[:, :half], use_cache=True)
    steps = [
        model(tokens[:, t : t + 1], past_key_values=output.past_key_values).logits for t in range(half, tokens.shape[1])
    ]
    return torch.cat([output.logits, *steps], dim=1), output.past_key_values


def assert_generates_as_without_a_cache(model, prompt):
    expected = model.generate(input_ids=prompt, use_cache=False, **GREEDY)
    assert torch.equal(model.generate(input_ids=prompt, **GREEDY), expected)
    assert torch.equal(model.generate(input_ids=prompt, prompt_lookup_num_tokens=3, **GREEDY), expected)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_precision_keeps_its_sums_wide(model, dtype, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = EchoForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    tokens = ids(2, 60)
    with torch.no_grad():
        expected, whole = model(tokens).logits, loaded(tokens, use_cache=False).logits
    stepped, cache = cached_logits(loaded, tokens)
    assert whole.dtype is dtype
    assert error(whole.float(), expected) < HALF[dtype]
    assert error(stepped.float(), expected) < HALF[dtype]
    for layer in cache.layers:
        for name, tensor in layer.state.tensors().items():
            if name == "ssm":
                assert tensor.dtype is torch.float32
            elif name.startswith("recurrent.") and tensor.is_floating_point():
                assert tensor.dtype is torch.float64
    assert loaded.generate(tokens, **GREEDY).shape == (2, 68)


def test_autocast_trains_and_generates(model):
    tokens = ids(2, 30)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            found = model(tokens).logits.float()
        assert model.generate(tokens, **GREEDY).shape == (2, 38)
        model(tokens, labels=tokens).loss.backward()
    with torch.no_grad():
        assert error(found, model(tokens).logits) < HALF[torch.bfloat16]
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("device_map", ["cpu", "auto"])
def test_it_loads_by_a_device_map(model, device_map, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = EchoForCausalLM.from_pretrained(tmp_path, device_map=device_map)
    assert torch.equal(loaded(ids(2, 9)).logits, model(ids(2, 9)).logits)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_trainer_makes_the_loss_fall(model, checkpointing, tmp_path):
    data = [{"input_ids": row, "labels": row} for row in ids(64, 12).repeat(1, 2)]
    arguments = TrainingArguments(
        output_dir=tmp_path,
        max_steps=10,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        logging_steps=1,
        save_steps=10,
        gradient_checkpointing=checkpointing,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=data[:8])
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.6 * losses[0]
    assert trainer.evaluate()["eval_loss"] < 0.6 * losses[0]
    loaded = EchoForCausalLM.from_pretrained(tmp_path / "checkpoint-10")
    assert torch.equal(loaded(ids(1, 9)).logits, model.eval()(ids(1, 9)).logits)


def test_the_trainer_resumes(tmp_path):
    data = [{"input_ids": row, "labels": row} for row in ids(16, 8)]

    def trained(folder, steps, resume=False):
        model = small_model("ssm+ska")
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            save_steps=1,
            per_device_train_batch_size=4,
            lr_scheduler_type="constant",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        Trainer(model=model, args=arguments, train_dataset=data).train(resume_from_checkpoint=resume)
        return model

    whole = trained(tmp_path / "whole", 2)
    trained(tmp_path / "parts", 1)
    resumed = trained(tmp_path / "parts", 2, resume=True)
    for (name, found), expected in zip(resumed.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(found, expected), name


def test_label_smoothing_shifts_the_labels(tmp_path):
    model, tokens = small_model("ssm+ska"), ids(2, 12)
    arguments = TrainingArguments(output_dir=tmp_path, label_smoothing_factor=0.1, report_to=[], use_cpu=True)
    trainer = Trainer(model=model, args=arguments)
    with torch.no_grad():
        found = trainer.compute_loss(model, {"input_ids": tokens, "labels": tokens})
        logits = model(tokens).logits[:, :-1].flatten(0, 1)
    expected = nn.functional.cross_entropy(logits, tokens[:, 1:].flatten(), label_smoothing=0.1)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_adapters_of_low_rank(model, tmp_path):
    peft = pytest.importorskip("peft", reason="PEFT is not installed: pip install peft")
    tokens, plain = ids(8, 30), copy.deepcopy(model)
    every = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    settings = peft.LoraConfig(r=4, target_modules=sorted(every - {"lm_head"}), task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, settings)
    optimizer = torch.optim.Adam([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(6):
        loss = adapted(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    adapted.eval()
    assert_generates_as_without_a_cache(adapted, tokens[:1])
    adapted.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = adapted(input_ids=tokens).logits
        assert torch.equal(peft.PeftModel.from_pretrained(plain, tmp_path).eval()(input_ids=tokens).logits, expected)
        assert error(adapted.merge_and_unload()(tokens).logits, expected) < 1e-5


def test_adapted_rows_of_the_embedding_are_scaled_as_the_others():
    """PEFT multiplies them by the layer's `embed_scale`, and by nothing where it finds none."""
    embedding = small_model("ssm").get_input_embeddings()
    tokens = ids(2, 5)
    scaled = nn.functional.embedding(tokens, embedding.weight) * embedding.embed_scale
    assert torch.equal(embedding(tokens), scaled)
    assert embedding.embed_scale.numel() == 1


@pytest.mark.parametrize("settings", [{"target_modules": ["embed_tokens"]}, {"trainable_token_indices": [1, 2, 3]}])
def test_adapters_of_the_embedding(settings):
    peft = pytest.importorskip("peft", reason="PEFT is not installed: pip install peft")
    model, tokens = small_model("ssm+ska"), ids(2, 20)
    with torch.no_grad():
        plain = model(tokens).logits
        adapted = peft.get_peft_model(model, peft.LoraConfig(**({"target_modules": ["o_proj"]} | settings))).eval()
        assert error(adapted(tokens).logits, plain) < 1e-5  # a fresh adapter changes nothing
        for name, parameter in adapted.named_parameters():
            if "lora_" in name or "delta" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
        changed = adapted(tokens).logits
        assert error(changed, plain) > 1e-3
        assert error(adapted.merge_and_unload()(tokens).logits, changed) < 1e-5


def test_tuned_norms(model):
    peft = pytest.importorskip("peft", reason="PEFT is not installed: pip install peft")
    tokens = ids(1, 20)
    with torch.no_grad():
        plain = model(tokens).logits
        tuned = peft.get_peft_model(model, peft.LNTuningConfig(target_modules=["norm"], task_type="CAUSAL_LM")).eval()
        assert error(tuned(input_ids=tokens).logits, plain) < 1e-5
    tuned(input_ids=tokens, labels=tokens).loss.backward()
    gradients = [parameter.grad for parameter in tuned.parameters() if parameter.requires_grad]
    assert gradients
    assert all(gradient is not None and bool(gradient.any()) for gradient in gradients)
    assert_generates_as_without_a_cache(tuned, tokens)


@pytest.mark.filterwarnings("ignore")
def test_linear_layers_in_eight_bits(model, tmp_path):
    pytest.importorskip("torchao", reason="torchao is not installed: pip install torchao")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    model.save_pretrained(tmp_path / "plain")
    quantised = EchoForCausalLM.from_pretrained(
        tmp_path / "plain", quantization_config=TorchAoConfig(Int8WeightOnlyConfig()), device_map="cpu"
    )
    tokens = ids(1, 30)
    mixer = next(module for module in quantised.modules() if isinstance(module, Mamba2))
    assert type(mixer.in_proj.weight).__name__ == "Int8Tensor"
    with torch.no_grad():
        logits = quantised(tokens).logits
        assert 0 < error(logits, model(tokens).logits) < 2e-2
    assert_generates_as_without_a_cache(quantised, tokens)
    quantised.save_pretrained(tmp_path / "quantised")
    again = EchoForCausalLM.from_pretrained(tmp_path / "quantised", device_map="cpu")
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, logits)


def test_a_compiled_model_generates_the_same(model):
    """Not as one graph: padding, the cache's book-keeping and a mixer's `prepare` decide on the host."""
    prompt = ids(2, 12)
    expected = model.generate(prompt, **GREEDY)
    torch.compiler.reset()
    model.forward = torch.compile(model.forward, backend="aot_eager")
    assert torch.equal(model.generate(prompt, **GREEDY), expected)
    torch.compiler.reset()
