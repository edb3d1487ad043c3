import copy
from itertools import pairwise

import pytest
import torch
from tiny_model import TinyModel
from torch import nn

from echo_ska.training.optimizer import (
    build_optimizer,
    learning_rate_factor,
    parameter_groups,
    set_learning_rate,
)


def test_schedule_rises_to_the_peak_and_falls_to_the_final_fraction():
    factors = [learning_rate_factor(step, 100, 10, 0.1) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == 1.0
    assert factors[99] == pytest.approx(0.1)
    assert all(a < b for a, b in pairwise(factors[:10]))
    assert all(a > b for a, b in pairwise(factors[9:]))
    assert learning_rate_factor(54, 100, 10, 0.0) == pytest.approx(0.5)  # halfway from step 9 to step 99


@pytest.mark.parametrize(("steps", "warmup_steps"), [(1, 0), (1, 1), (5, 5), (5, 0), (2, 1)])
def test_schedule_holds_at_the_edges(steps, warmup_steps):
    factors = [learning_rate_factor(step, steps, warmup_steps, 0.0) for step in range(steps)]
    assert max(factors) == 1.0
    assert min(factors) >= 0.0


def test_only_matrices_decay():
    groups = {group["name"]: group for group in parameter_groups(TinyModel(), 1e-3, 0.1)}
    assert groups["decay"]["parameter_names"] == ["recurrence.weight_ih_l0", "recurrence.weight_hh_l0"]
    assert groups["decay"]["weight_decay"] == 0.1
    assert set(groups["no_decay"]["parameter_names"]) == {
        "embedding.weight",  # and the head, which is tied to it
        "recurrence.bias_ih_l0",
        "recurrence.bias_hh_l0",
        "norm.weight",
        "norm.bias",
    }
    assert groups["no_decay"]["weight_decay"] == 0.0


def test_a_parameter_may_ask_for_no_decay_and_its_own_rate():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].weight._no_weight_decay = True
    model[1].bias._learning_rate_scale = 10.0
    model[1].weight.requires_grad_(False)
    optimizer = build_optimizer(model, 1e-3, 0.1, (0.9, 0.95))
    named = {group["name"]: group["parameter_names"] for group in optimizer.param_groups}
    assert named == {"no_decay": ["0.weight", "0.bias"], "no_decay x10": ["1.bias"]}
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [5e-4, 5e-3]


def test_a_module_may_ask_for_its_parameters_and_copies_keep_it():
    class Mixer(nn.Module):
        _no_weight_decay = ("blend_weight",)
        _learning_rate_scale = {"raw_ridge": 10.0}  # noqa: RUF012

        def __init__(self) -> None:
            super().__init__()
            self.blend_weight = nn.Parameter(torch.ones(2, 4))
            self.raw_ridge = nn.Parameter(torch.ones(2))
            self.inner = nn.Linear(2, 2, bias=False)

    groups = parameter_groups(copy.deepcopy(nn.Sequential(Mixer())), 1e-3, 0.1)
    assert {group["name"]: group["parameter_names"] for group in groups} == {
        "decay": ["0.inner.weight"],
        "no_decay": ["0.blend_weight"],
        "no_decay x10": ["0.raw_ridge"],
    }


def test_norms_of_several_dimensions_do_not_decay():
    class HeadNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 4))

    assert [group["name"] for group in parameter_groups(nn.Sequential(HeadNorm()), 1e-3, 0.1)] == ["no_decay"]


def test_bad_scale_and_empty_model_are_refused():
    layer = nn.Linear(2, 2)
    layer.bias._learning_rate_scale = 0.0
    with pytest.raises(ValueError, match="_learning_rate_scale of bias must be a positive number"):
        parameter_groups(layer, 1e-3, 0.1)
    with pytest.raises(ValueError, match="no trainable parameters"):
        parameter_groups(nn.ReLU(), 1e-3, 0.1)
