"""The plain numbers of an inspection: small cases by hand."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from echo_ska.evaluation.inspection import inspect_model
from echo_ska.evaluation.inspection_summary import layer_summary, strongest_places, weight_by_role, written_tokens
from echo_ska.models import EchoConfig, EchoForCausalLM

IDS = torch.tensor([3, 1, 3, 2])
WEIGHTS = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.5, 1.0], [0.0, 0.0]])  # means 0.5, 1, 0.75, 0


@pytest.fixture(scope="module")
def layer():
    torch.manual_seed(0)
    config = EchoConfig(vocab_size=4, hidden_size=8, num_hidden_layers=3, ska_layers=[1], num_heads=2, rank=3)
    found = inspect_model(EchoForCausalLM(config), IDS).layers[0]
    return dataclasses.replace(found, write_weight=WEIGHTS)


def test_tokens_by_their_mean_weight(layer):
    found = [(entry["token"], entry["count"], entry["mean"]) for entry in written_tokens(layer, IDS)]
    assert found == [(1, 1, 1.0), (3, 2, 0.625), (2, 1, 0.0)]


def test_places_and_roles(layer):
    assert strongest_places(layer, 2) == [{"position": 1, "weight": 1.0}, {"position": 2, "weight": 0.75}]
    assert weight_by_role(layer, ["key", "val", "key", "."]) == {"key": 0.625, "val": 1.0, ".": 0.0}


def test_a_layer_without_a_gate_writes_everything(layer):
    ungated = dataclasses.replace(layer, write_weight=None)
    assert written_tokens(ungated, IDS) == strongest_places(ungated) == []
    assert weight_by_role(ungated, ["key"] * 4) == {}
    assert layer_summary(ungated)["heads"][0]["write_weight"] is None


def test_the_summary_is_json(layer):
    summary = json.loads(json.dumps(layer_summary(layer), allow_nan=False))
    first = summary["heads"][0]
    assert first["write_weight"]["share_of_exactly_0"] == 0.5
    assert first["write_weight"]["share_of_exactly_1"] == 0.25
    assert sum(first["write_weight"]["histogram"]) == 4
    assert len(first["operator"]["eigenvalues"]) == 3
    assert summary["along"]["tokens"] == [1, 2, 3, 4]
    assert summary["along"]["lambda_max"][1][-1] == summary["heads"][1]["lambda_max"]
