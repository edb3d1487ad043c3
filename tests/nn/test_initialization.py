"""Where parameters start."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from echo_ska.nn.initialization import inverse_softplus, start_as, start_steps


@pytest.mark.parametrize("number", [1e-12, 1e-3, 1.0, 30.0, 800.0])
def test_the_inverse_of_softplus_is_exact_for_small_numbers_and_finite_for_large_ones(number):
    assert math.isclose(F.softplus(torch.tensor(inverse_softplus(number), dtype=torch.float64)), number, rel_tol=1e-12)


def test_steps_start_log_uniform():
    torch.manual_seed(0)
    bias = torch.zeros(10_000)
    start_steps(bias)
    steps = F.softplus(bias)
    assert 1e-3 * (1 - 1e-5) < steps.min() < 1.01e-3
    assert 0.99e-1 < steps.max() < 1e-1 * (1 + 1e-5)
    assert math.isclose(steps.log10().mean(), -2, abs_tol=0.02)


def test_what_was_loaded_stays():
    loaded = torch.zeros(3)
    loaded._is_hf_initialized = True
    for start in (start_steps, lambda parameter: start_as(parameter, torch.ones(3))):
        start(loaded)
    assert not loaded.any()
