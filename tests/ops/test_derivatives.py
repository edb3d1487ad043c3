"""Second derivatives are right or refused; they are never silently 0."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from cases import IMPLEMENTATIONS, READINGS, Case, make_case

from echo_ska.ops.native.build import why_unavailable

LOSSES = {"linear": torch.sum, "nonlinear": lambda output: output.sin().sum()}
PARALLEL = [name for name in IMPLEMENTATIONS if name != "recurrent"]


def penalty(case: Case, loss: str, name: str, **overrides) -> tuple[torch.Tensor, torch.Tensor]:
    """The squared norm of the gradient of a loss by one of the inputs, and the input."""
    case = case.requires_grad()
    output, _ = case.run(**overrides)
    (gradient,) = torch.autograd.grad(LOSSES[loss](output), case.tensors[name], create_graph=True)
    return gradient.square().sum(), case.tensors[name]


@pytest.mark.parametrize("implementation", PARALLEL)
@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["key", "value", "write_weight", "ridge"])
def test_a_backend_with_first_derivatives_alone_refuses_second_ones(implementation, reading, loss, name):
    case = make_case(9, batch=1, **READINGS[reading])
    total, tensor = penalty(case, loss, name, **IMPLEMENTATIONS[implementation])
    plain, _ = penalty(case, loss, name, backend="recurrent")
    torch.testing.assert_close(total, plain, rtol=1e-9, atol=1e-9)
    if not total.requires_grad:  # nothing asks for more: the value's gradient is a constant of a linear loss
        assert (name, loss) == ("value", "linear")
        return
    with pytest.raises(RuntimeError, match='call it with backend="recurrent"'):
        torch.autograd.grad(total + 0 * tensor.sum(), tensor)


def test_the_definition_has_second_derivatives():
    case = make_case(6, batch=1, rank=3, head_dim=2).requires_grad()
    names = ("key", "value", "ridge")

    def output(*tensors):
        return Case(case.tensors | dict(zip(names, tensors, strict=True)), case.settings).run(backend="recurrent")[0]

    assert torch.autograd.gradgradcheck(output, [case.tensors[name] for name in names], atol=1e-5)


@pytest.mark.parametrize("implementation", PARALLEL)
def test_the_second_derivative_by_a_state_is_refused(implementation):
    _, state = make_case(5).run(backend="recurrent")
    gram = state.statistics.gram.detach().requires_grad_()
    state = dataclasses.replace(state, statistics=dataclasses.replace(state.statistics, gram=gram))
    total, _ = penalty(make_case(9, seed=1), "linear", "query", initial_state=state, **IMPLEMENTATIONS[implementation])
    with pytest.raises(RuntimeError, match='call it with backend="recurrent"'):
        torch.autograd.grad(total, gram)


@pytest.mark.parametrize("backend", ["chunked", "native"])
def test_a_captured_graph_refuses_them_too(backend):
    if backend == "native" and why_unavailable() is not None:
        pytest.skip(f"no native route: {why_unavailable()}")
    case = make_case(9, batch=1)
    key = case.tensors["key"].clone().requires_grad_()

    class Read(torch.nn.Module):
        def forward(self, key):
            return Case(case.tensors | {"key": key}, case.settings).run(backend=backend)[0]

    program = torch.export.export(Read(), (key,)).module()
    (gradient,) = torch.autograd.grad(program(key).sum(), key, create_graph=True)
    with pytest.raises(RuntimeError, match='call it with backend="recurrent"'):
        torch.autograd.grad(gradient.square().sum(), key)


@pytest.mark.parametrize("implementation", PARALLEL)
def test_gradients_asked_for_with_their_graph_are_the_gradients(implementation):
    case = make_case(40).requires_grad()
    output, _ = case.run(**IMPLEMENTATIONS[implementation])
    tensors = list(case.tensors.values())
    first = torch.autograd.grad(output.sin().sum(), tensors, retain_graph=True)
    again = torch.autograd.grad(output.sin().sum(), tensors, create_graph=True)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
