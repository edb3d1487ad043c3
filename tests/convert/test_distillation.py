"""The two stages of distillation, on models so small that they take a second."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from host_models import host, tokens

from echo_ska.convert import distil, replace_attention
from echo_ska.convert.data import TokenWindows
from echo_ska.convert.distillation import Finetuning, OutputMatching
from echo_ska.training import TrainingConfig

QUICK = TrainingConfig(steps=4, learning_rate=3e-3, device="cpu", log_every=1)


def pair(name="llama", layers=(0, 2)):
    teacher = host(name)
    student = copy.deepcopy(teacher)
    replace_attention(student, list(layers), rank=6)
    return student, teacher


def windows(seed=0):
    return TokenWindows(tokens(1, 500)[0], batch_size=4, length=16, seed=seed)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
@torch.no_grad()
def test_each_layer_is_held_to_what_the_teachers_attention_gives(name):
    student, teacher = pair(name)
    stage = OutputMatching(student, teacher)
    ids = tokens(3, 10)
    blocks = teacher.transformer.h if name == "gpt2" else teacher.model.layers
    attribute = "attn" if name == "gpt2" else "self_attn"
    wanted = []
    for index in (0, 2):
        seen = {}
        attention = getattr(blocks[index], attribute)
        hook = attention.register_forward_hook(
            lambda _, arguments, settings, output, seen=seen: seen.update(
                input=arguments[0] if arguments else settings["hidden_states"], output=output[0]
            ),
            with_kwargs=True,
        )
        teacher(ids)
        hook.remove()
        found = stage.layers[str(index)](seen["input"])[0]
        wanted.append(F.mse_loss(found, seen["output"]) / seen["output"].square().mean())
    assert torch.allclose(stage(ids).loss, torch.stack(wanted).mean(), rtol=1e-5)
    assert not any(module._forward_hooks for module in teacher.modules())


@torch.no_grad()
def test_padding_does_not_count():
    student, teacher = pair()
    stage = OutputMatching(student, teacher)
    ids = tokens(1, 10)
    mask = torch.ones_like(ids)
    mask[0, 7:] = 0
    assert torch.allclose(stage(ids, attention_mask=mask).loss, stage(ids[:, :7]).loss, rtol=1e-4)


def test_the_first_stage_trains_the_replaced_layers_alone():
    student, teacher = pair()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    untouched = copy.deepcopy(teacher.state_dict())
    report = distil(student, teacher, windows(), matching=QUICK, finetuning=None)
    assert report.finetuning is None
    changed = {name for name, value in student.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(".self_attn.mixer." in name and int(name.split(".")[2]) in (0, 2) for name in changed)
    assert all(torch.equal(value, untouched[name]) for name, value in teacher.state_dict().items())
    assert not student.training


def test_layers_are_matched_without_dropout():
    student, teacher = pair("gpt2")
    for block in student.transformer.h:
        if hasattr(block.attn, "mixer"):
            block.attn.dropout.p = 0.5
    first = dataclasses.replace(QUICK, steps=1)
    with torch.no_grad():
        start = OutputMatching(student, teacher)(**windows().batch(0)).loss.item()
    recorded = distil(student, teacher, windows(), matching=first, finetuning=None).matching.figures["loss"]
    assert recorded == pytest.approx(start)


def test_a_converted_model_is_converted_further():
    first, _ = pair(layers=[0])
    second = copy.deepcopy(first)
    replace_attention(second, [2], rank=6)
    before = copy.deepcopy(second.state_dict())
    assert list(OutputMatching(second, first).layers) == ["2"]
    distil(second, first, windows(), matching=QUICK, finetuning=None)
    changed = {name for name, value in second.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("model.layers.2.self_attn.mixer.") for name in changed)


def test_matching_lowers_its_loss_and_finetuning_the_cross_entropy():
    student, teacher = pair(layers=(0, 1, 2))
    held = windows(seed=5).batch(0)
    matching, student_loss = OutputMatching(student, teacher), Finetuning(student)

    def losses():
        with torch.no_grad():
            return matching(**held).loss.item(), student_loss(**held).loss.item()

    start = losses()
    many = TrainingConfig(steps=60, learning_rate=1e-2, device="cpu")
    distil(student, teacher, windows(), matching=many, finetuning=None)
    matched = losses()
    assert matched[0] < 0.8 * start[0]
    distil(student, teacher, windows(), matching=None, finetuning=many)
    assert losses()[1] < 0.8 * matched[1]


def test_divergence_from_the_teacher_is_that_of_the_distributions_that_count():
    student, teacher = pair()
    batch = windows().batch(0)
    batch["labels"][:, :6] = -100
    plain = Finetuning(student)(**batch).loss
    weighted = Finetuning(student, teacher, kl_weight=0.5)(**batch).loss
    with torch.no_grad():
        found, wanted = (model(batch["input_ids"]).logits[:, 5:-1].softmax(-1) for model in (student, teacher))
        divergence = (wanted * (wanted / found).log()).sum(-1).mean()
    assert torch.allclose(weighted, plain + 0.5 * divergence, rtol=1e-4)
    assert Finetuning(teacher, teacher, kl_weight=2.0)(**batch).loss.item() == pytest.approx(
        Finetuning(teacher)(**batch).loss.item(), rel=1e-5
    )


def test_an_interrupted_distillation_goes_on_where_it_was(tmp_path):
    class StoppedError(Exception):
        pass

    def interrupt(student, step):
        if step == 2:
            raise StoppedError
        return {}

    settings = TrainingConfig(steps=4, device="cpu", checkpoint_every=1, evaluate_every=1)
    whole, teacher = pair()
    wanted = distil(whole, teacher, windows(), matching=settings, finetuning=settings)
    student, _ = pair()
    with pytest.raises(StoppedError):
        distil(
            student, teacher, windows(), matching=settings, finetuning=settings, directory=tmp_path, evaluate=interrupt
        )
    student, _ = pair()
    found = distil(student, teacher, windows(), matching=settings, finetuning=settings, directory=tmp_path)
    assert found.finetuning.figures["loss"] == wanted.finetuning.figures["loss"]
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), whole.parameters(), strict=True))
    assert {path.name for path in tmp_path.iterdir()} == {"matching", "finetuning"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_training_in_half_precision_is_refused(dtype):
    teacher = host("llama").to(dtype)
    student = copy.deepcopy(teacher)
    replace_attention(student, [1], rank=6)
    for stages in ({"finetuning": None, "matching": QUICK}, {"matching": None, "finetuning": QUICK}):
        with pytest.raises(ValueError, match=f"are lost in {dtype}: distil student.float.. from teacher.float"):
            distil(student, teacher, windows(), **stages)
    half = copy.deepcopy(teacher)
    student.float()
    for stages in ({"finetuning": None, "matching": QUICK}, {"matching": None, "finetuning": QUICK, "kl_weight": 1.0}):
        with pytest.raises(ValueError, match=f"the teacher is in {dtype} and the student in float32: give teacher.flo"):
            distil(student, half, windows(), **stages)
    distil(student, teacher.float(), windows(), matching=QUICK, finetuning=None)


def test_an_evaluation_of_either_stage_sees_no_dropout():
    student, teacher = pair()
    student.train()
    seen = []

    def evaluate(model, step):
        seen.append(any(module.training for module in model.modules()))
        return {}

    stages = {name: dataclasses.replace(QUICK, evaluate_every=1) for name in ("matching", "finetuning")}
    distil(student, teacher, windows(), evaluate=evaluate, **stages)
    assert len(seen) >= 2
    assert not any(seen)


def test_pairs_that_do_not_fit_are_refused():
    student, teacher = pair()
    with pytest.raises(ValueError, match="call replace_attention on it first"):
        OutputMatching(teacher, teacher)
    with pytest.raises(ValueError, match="the model as it was before"):
        OutputMatching(student, student)
    with pytest.raises(ValueError, match="needs a teacher"):
        Finetuning(student, None, kl_weight=1.0)


def test_a_distillation_of_other_settings_does_not_go_on(tmp_path):
    student, teacher = pair()
    distil(student, teacher, windows(), matching=QUICK, finetuning=QUICK, directory=tmp_path)
    again = pair()[0]
    distil(again, teacher, windows(), matching=QUICK, finetuning=QUICK, directory=tmp_path)  # the same one
    for mine, its in zip(again.parameters(), student.parameters(), strict=True):
        assert torch.equal(mine, its)
    fresh = copy.deepcopy(teacher)
    replace_attention(fresh, [0, 2], init="fresh", rank=6)
    with pytest.raises(ValueError, match=r"was trained with another model\.replaced"):
        distil(fresh, teacher, windows(), matching=QUICK, finetuning=None, directory=tmp_path)
    other = host("llama", seed=1)
    with pytest.raises(ValueError, match=r"was trained with another model\.teacher"):
        distil(pair()[0], other, windows(), matching=QUICK, finetuning=None, directory=tmp_path)
    with pytest.raises(ValueError, match=r"was trained with another model\.kl_weight"):
        distil(again, teacher, windows(), matching=QUICK, finetuning=QUICK, kl_weight=0.5, directory=tmp_path)
