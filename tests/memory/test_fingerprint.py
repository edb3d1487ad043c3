"""One hash of a model's function: equal where it is, other where it is not, computed once."""

from __future__ import annotations

import copy
import hashlib
import subprocess
import sys
import warnings

import pytest
import torch
from context_models import KINDS, ids, tiny
from torch import nn

from echo_ska.memory import ContextState, fingerprint, model_fingerprint
from echo_ska.models import EchoForCausalLM


@pytest.fixture
def hashed(monkeypatch):
    """How many times a model has been hashed."""
    count = []
    original = hashlib.sha256

    def counting(*arguments):
        count.append(1)
        return original(*arguments)

    monkeypatch.setattr(fingerprint.hashlib, "sha256", counting)
    return count


def test_models_that_compute_the_same_have_the_same(tmp_path):
    model = tiny(ska_layers=[1])
    expected = model_fingerprint(model)
    assert len(expected) == 64
    assert model_fingerprint(copy.deepcopy(model)) == expected
    assert model_fingerprint(tiny(ska_layers=[1])) == expected
    model.save_pretrained(tmp_path)
    assert model_fingerprint(EchoForCausalLM.from_pretrained(tmp_path)) == expected
    code = (
        "import sys; from echo_ska.memory import model_fingerprint; from echo_ska.models import EchoForCausalLM\n"
        "print(model_fingerprint(EchoForCausalLM.from_pretrained(sys.argv[1])))"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == expected
    # What no function depends on.
    model.config.max_position_embeddings = 7
    model.config.use_cache = False
    model.eval()
    assert model_fingerprint(model) == expected


def test_models_that_do_not_have_others():
    base = {"ska_layers": [1]}
    models = [tiny(**fields) for fields in KINDS.values()]
    models += [
        tiny(seed=1, **base),
        tiny(power=1, **base),
        tiny(blended=False, **base),
        tiny(norm_eps=1e-6, **base),
        tiny(rope_theta=500.0, **base),
        tiny(**base).double(),
        tiny(**base).to(torch.bfloat16),
    ]
    model = tiny(**base)
    for name, _ in model.named_parameters():
        if name.endswith("raw_ridge") or name.startswith("model.norm"):
            other = copy.deepcopy(model)
            with torch.no_grad():
                other.get_parameter(name).view(-1)[-1] += 1e-3
            models.append(other)
    buffered = tiny(**base)
    buffered.register_buffer("extra", torch.zeros(2))
    models.append(buffered)
    assert len({model_fingerprint(model) for model in models}) == len(models)
    assert model_fingerprint(model) == model_fingerprint(models[2])


def test_numbers_that_are_one_are_written_as_one():
    assert model_fingerprint(tiny(rope_theta=10_000)) == model_fingerprint(tiny(rope_theta=10_000.0))


def test_it_is_computed_once_until_a_parameter_changes(hashed):
    model = tiny(ska_layers=[1])
    first = model_fingerprint(model)
    assert [model_fingerprint(model) for _ in range(3)] == [first] * 3
    assert len(hashed) == 1
    weight = model.model.layers[1].mixer.o_proj.weight
    with torch.no_grad():
        weight += 1
    second = model_fingerprint(model)
    assert second != first
    model.model.layers[1].mixer.o_proj.weight = nn.Parameter(weight.detach() - 0.5)
    third = model_fingerprint(model)
    weight = model.model.layers[1].mixer.o_proj.weight
    weight.data = weight.data + 2
    fourth = model_fingerprint(model)
    assert len({first, second, third, fourth}) == 4
    model.config.power = 1
    assert model_fingerprint(model) != fourth
    assert len(hashed) == 5
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    before = model_fingerprint(model)
    optimizer.step()
    assert model_fingerprint(model) != before


def test_a_model_whose_changes_torch_does_not_count_is_hashed_anew(hashed):
    with torch.inference_mode():
        model = tiny()
        first = model_fingerprint(model)
        model.lm_head.weight.add_(1)
        assert model_fingerprint(model) != first
    assert len(hashed) == 2


def test_a_model_that_is_gone_is_forgotten():
    model = tiny()
    model_fingerprint(model)
    kept = len(fingerprint._kept)
    del model
    assert len(fingerprint._kept) < kept


def test_what_has_no_fingerprint_is_refused():
    with torch.device("meta"):
        model = tiny()
    with pytest.raises(ValueError, match=r"no numbers yet: .* is on the meta device"):
        model_fingerprint(model)
    with pytest.raises(ValueError, match="belongs to an Echo model, got Linear"):
        model_fingerprint(nn.Linear(2, 2))


def test_a_change_that_torch_does_not_count_is_noticed():
    model = tiny(ska_layers=[1])
    context, first = ContextState.read(model, ids(9)), model_fingerprint(model)
    weight = model.model.layers[1].mixer.o_proj.weight
    version, place = weight._version, weight.data_ptr()
    weight.data += 1e-3  # as PEFT merges an adapter
    assert (weight._version, weight.data_ptr()) == (version, place)
    second = model_fingerprint(model)
    assert second not in (first, None)
    assert second == model_fingerprint(copy.deepcopy(model))
    with pytest.raises(ValueError, match="the same configuration, other parameters"):
        context.logits(model)
    for write in (
        lambda: weight.detach().numpy().__setitem__((0, 0), 0.5),
        lambda: weight.data.copy_(weight.data.flip(0).clone()),  # no sum of all values would tell
        lambda: weight.data.copy_(weight.data.nextafter(torch.tensor(9.0))),
    ):
        before = model_fingerprint(model)
        write()
        assert model_fingerprint(model) == model_fingerprint(copy.deepcopy(model)) != before


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.bfloat16, torch.float64, torch.complex64])
def test_the_sums_tell_one_byte_of_any_dtype_and_place(dtype):
    for size in (1, 7, 8, 40, 999):
        held = (torch.arange(size + 1) % 2).to(dtype)
        data = held[1:]  # at an odd place of its storage
        before = fingerprint._checks({"": data})
        assert fingerprint._checks({"": data.clone()}) == before
        data[size // 2] = 1 - data[size // 2].to(torch.complex64 if dtype.is_complex else torch.float32)
        assert fingerprint._checks({"": data}) != before


class _Adapter(nn.Linear):
    """What PEFT's layers say of themselves."""

    disable_adapters = False
    active_adapters = ("default",)
    scaling = {"default": 2.0}  # noqa: RUF012
    merged_adapters = ()


def test_which_adapters_are_active_is_part_of_it(hashed):
    model = tiny(ska_layers=[1])
    plain = model_fingerprint(model)
    layer = model.model.layers[1].mixer.o_proj
    layer.__class__ = _Adapter
    found = [plain, model_fingerprint(model), model_fingerprint(model)]
    assert found[1] == found.pop()
    for name, value in (
        ("active_adapters", ("other",)),
        ("disable_adapters", True),
        ("merged_adapters", ("other",)),
        ("scaling", {"default": 1.0}),
    ):
        setattr(layer, name, value)
        found.append(model_fingerprint(model))
    assert len(set(found)) == 6 == len(hashed)


def test_packed_weights_are_part_of_it():
    if torch.backends.quantized.supported_engines == ["none"]:
        pytest.skip("this build of torch has no quantised kernels")

    def quantised(model):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)

    first, same, other = tiny(), tiny(), tiny()
    with torch.no_grad():
        other.model.layers[0].mixer.out_proj.weight.neg_()
    first, same, other = (quantised(model) for model in (first, same, other))
    assert model_fingerprint(first) == model_fingerprint(same) == model_fingerprint(first)
    context = ContextState.read(first, ids(9))
    with pytest.raises(ValueError, match="the same configuration, other parameters"):
        context.logits(other)


class _Extra(nn.Identity):
    extra: object = None

    def get_extra_state(self):
        return self.extra

    def set_extra_state(self, state):
        self.extra = state


def test_extra_state_is_part_of_it_or_refused():
    found = []
    for extra in (None, {"scale": torch.ones(2)}, {"scale": torch.zeros(2)}, [1, torch.float16], b"bytes"):
        model = tiny()
        model.extra = _Extra()
        model.extra.extra = extra
        found.append(model_fingerprint(model))
    assert found[0] == model_fingerprint(tiny())
    assert len(set(found)) == 5
    model.extra.extra = object()
    with pytest.raises(ValueError, match=r"extra\._extra_state holds a object, which cannot be told from another"):
        model_fingerprint(model)


class _Halves(torch.Tensor):
    """A tensor made of two, as quantised weights are of integers and scales; it has no bytes of its own."""

    @staticmethod
    def __new__(cls, integers, scale, group=1):
        return torch.Tensor._make_wrapper_subclass(cls, integers.shape, dtype=torch.float32)

    def __init__(self, integers, scale, group=1):
        self.integers, self.scale, self.group = integers, scale, group

    def __tensor_flatten__(self):
        return ["integers", "scale"], {"group": self.group, "dtype": torch.int8}

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), settings=None):
        if function is torch.ops.aten.detach.default:
            return cls(arguments[0].integers, arguments[0].scale, arguments[0].group)
        raise NotImplementedError(f"{function} is not there")


class _NoParts(_Halves):
    __tensor_flatten__ = property()  # hasattr says no


def _with_weight(kind, *parts):
    model = tiny()
    model.lm_head.weight = nn.Parameter(kind(*parts), requires_grad=False)
    return model


def test_tensor_subclasses_are_taken_apart(hashed):
    integers, scale = torch.ones(50, 16, dtype=torch.int8), torch.ones(50)
    model = _with_weight(_Halves, integers, scale)
    first = model_fingerprint(model)
    assert model_fingerprint(model) == first
    assert len(hashed) == 1
    assert first == model_fingerprint(_with_weight(_Halves, integers.clone(), scale.clone()))
    integers.data[3, 4] = 7
    second = model_fingerprint(model)
    assert len({first, second, model_fingerprint(_with_weight(_Halves, integers, scale, 2))}) == 3
    with pytest.raises(ValueError, match=r"the bytes of lm_head.weight, a _NoParts, cannot be had"):
        model_fingerprint(_with_weight(_NoParts, integers, scale))
