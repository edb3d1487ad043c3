"""The aids on their own."""

from __future__ import annotations

import pytest
import torch

from echo_ska.nn.aids import gate_score, stretched_sigmoid, unit_norm


@pytest.mark.parametrize("weight", [0.01, 0.5, 0.99])
def test_a_gate_started_at_a_score_has_that_weight(weight):
    score = torch.tensor(gate_score(weight), dtype=torch.float64)
    assert float(stretched_sigmoid(score)) == pytest.approx(weight, abs=1e-12)


def test_a_gate_closes_and_opens_wholly():
    assert stretched_sigmoid(torch.tensor([-4.0, 0.0, 4.0])).tolist() == [0.0, 0.5, 1.0]


def test_unit_norm_is_smooth_at_zero():
    vectors = torch.tensor([[0.0, 0.0], [30.0, 40.0]], dtype=torch.float64)
    assert torch.allclose(unit_norm(vectors), torch.tensor([[0.0, 0.0], [0.6, 0.8]], dtype=torch.float64), atol=1e-5)
