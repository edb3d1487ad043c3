"""One hash of a model's function: equal where it is, other where it is not, computed once."""

from __future__ import annotations

import copy
import hashlib
import subprocess
import sys

import pytest
import torch
from context_models import KINDS, tiny
from torch import nn

from echo_ska.memory import fingerprint, model_fingerprint
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
