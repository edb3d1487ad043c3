"""Every route is the definition in float64: outputs, states and gradients."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from cases import IMPLEMENTATIONS, LENGTHS, READINGS, assert_same, make_case, outcome
from definition import definition

from echo_ska.algebra import SufficientStatistics
from echo_ska.ops import spectral_koopman_attention


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("time", LENGTHS)
@pytest.mark.parametrize("power", [0, 1, 2, 3])
@pytest.mark.parametrize("blend", [False, True], ids=["pure", "blended"])
def test_every_route_equals_the_others_with_gradients(time, power, blend, reading):
    case = make_case(time, power=power, blend=blend, **READINGS[reading])
    expected = outcome(case, **IMPLEMENTATIONS["recurrent"])
    for name, implementation in IMPLEMENTATIONS.items():
        if name != "recurrent":
            assert_same(outcome(case, **implementation), expected, 1e-9)


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("time", LENGTHS)
@pytest.mark.parametrize("power", [0, 1, 2, 3])
@pytest.mark.parametrize("blend", [False, True], ids=["pure", "blended"])
def test_every_route_equals_the_textbook_formula(time, power, blend, reading):
    case = make_case(time, batch=1, power=power, blend=blend, **READINGS[reading])
    expected = definition(**case.tensors, **case.settings)
    for implementation in IMPLEMENTATIONS.values():
        output, _ = case.run(**implementation)
        assert_same({"output": output}, {"output": expected}, 1e-9)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("blend", [False, True], ids=["pure", "blended"])
def test_gradcheck(implementation, reading, blend):
    case = make_case(6, batch=1, rank=3, head_dim=2, blend=blend, **READINGS[reading]).requires_grad()
    start = make_case(3, batch=1, rank=3, head_dim=2, seed=5, **READINGS[reading]).run()[1]
    carried = start.statistics.tensors()
    count = carried.pop("count")

    def objective(*inputs):
        tensors = dict(zip(case.tensors, inputs, strict=False))
        sums = dict(zip(carried, inputs[len(tensors) :], strict=True))
        sums["gram"] = (sums["gram"] + sums["gram"].mT) / 2  # a Gram matrix has no other direction to move in
        statistics = SufficientStatistics(**sums, count=count)
        output, state = spectral_koopman_attention(
            **tensors,
            **case.settings,
            **(IMPLEMENTATIONS[implementation] | ({"chunk_size": 4} if "16" in implementation else {})),
            initial_state=dataclasses.replace(start, statistics=statistics),
            output_final_state=True,
        )
        return output, state.statistics.gram, state.statistics.lag_moment, state.statistics.value_moment

    inputs = (*case.tensors.values(), *(tensor.requires_grad_() for tensor in carried.values()))
    torch.autograd.gradcheck(objective, inputs, eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradient_at_a_weight_of_exactly_zero_is_zero(implementation):
    case = make_case(9)
    case.tensors["write_weight"][:, 4] = 0.0
    found = outcome(case, **IMPLEMENTATIONS[implementation])
    assert all(t.isfinite().all() for t in found.values())
    assert (found["gradient of write_weight"][:, 4] == 0).all()
    assert (found["gradient of write_weight"][:, 3] != 0).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_lower_precision_inputs_stay_near_float64(implementation, reading, dtype):
    """The route's own error, its inputs being exact: float32 keeps 1e-4; half precision rounds the output alone."""
    case = make_case(130, rank=16, head_dim=8, blend=True, **READINGS[reading]).to(dtype)
    output, state = case.run(**IMPLEMENTATIONS[implementation])
    exact, _ = case.to(torch.float64).run(backend="recurrent")
    tolerance = 1e-4 if dtype is torch.float32 else 2 * torch.finfo(dtype).eps
    assert_same({"output": output}, {"output": exact}, tolerance)
    assert output.dtype is dtype
    assert state.statistics.gram.dtype is torch.float64


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_autocast_leaves_statistics_and_solves_alone(implementation):
    case = make_case(40).to(torch.float32)
    plain, _ = case.run(**IMPLEMENTATIONS[implementation])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast, state = case.run(**IMPLEMENTATIONS[implementation])
    assert torch.equal(plain, under_autocast)
    assert state.statistics.gram.dtype is torch.float64


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("reading", READINGS)
def test_autocast_leaves_the_backward_pass_alone(implementation, reading):
    case = make_case(70, **READINGS[reading]).to(torch.float32).requires_grad()
    output, state = case.run(**IMPLEMENTATIONS[implementation])
    objective, tensors = output.sin().sum() + state.statistics.gram.sum(), list(case.tensors.values())
    plain = torch.autograd.grad(objective, tensors, retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = torch.autograd.grad(objective, tensors)
    assert all(torch.equal(one, other) for one, other in zip(plain, under_autocast, strict=True))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_inputs_may_be_strided_and_are_not_changed(implementation):
    case = make_case(33)
    strided = {n: t.mT.contiguous().mT if t.dim() > 1 else t for n, t in case.tensors.items()}
    before = {name: t.clone() for name, t in strided.items()}
    expected, _ = case.run(**IMPLEMENTATIONS[implementation])
    case.tensors = strided
    assert_same({"output": case.run(**IMPLEMENTATIONS[implementation])[0]}, {"output": expected}, 1e-12)
    assert all(torch.equal(before[name], t) for name, t in strided.items())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("recompute", [False, True])
def test_a_graph_that_is_kept_gives_the_same_gradients_again(implementation, reading, recompute):
    case = make_case(300, **READINGS[reading]).requires_grad()
    output, _ = case.run(**IMPLEMENTATIONS[implementation], recompute=recompute)
    tensors = list(case.tensors.values())
    first = torch.autograd.grad(output.sum(), tensors, retain_graph=True)
    again = torch.autograd.grad(output.sum(), tensors)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    kept = torch.autograd.grad(case.run(**IMPLEMENTATIONS[implementation], recompute=False)[0].sum(), tensors)
    names = case.tensors.keys()
    assert_same(dict(zip(names, first, strict=True)), dict(zip(names, kept, strict=True)), 1e-10)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_bitwise_deterministic(implementation):
    case = make_case(70)
    first, second = (outcome(case, **IMPLEMENTATIONS[implementation]) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
