"""The PyTorch route under a compiler. That it computes the right thing is a law."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from compilers import needs_cpp_compiler

from echo_ska.ops import chunked, spectral_koopman_attention

READINGS = {
    "exact": {},
    "chunk-causal": {"refresh_interval": 64},
    "non-causal": {"causal": False},
    "weighted, blended": {"weighted": True},
}


def call(reading):
    """The op as a function of its token inputs alone, and those."""
    generator = torch.Generator().manual_seed(0)
    settings = dict(READINGS[reading])
    weighted = settings.pop("weighted", False)

    def op(query, key, value, write_weight=None, blend=None):
        steering = {"write_weight": write_weight, "blend": blend, "ridge": 0.5, "backend": "chunked"}
        output, state = spectral_koopman_attention(
            query, key, value, **steering, **settings, output_final_state=settings.get("causal", True)
        )
        return output, None if state is None else state.statistics.lag_moment

    def normal(width):
        return torch.randn(2, 150, 3, width, generator=generator, dtype=torch.float64)

    tensors = [F.normalize(normal(8), dim=-1), F.normalize(normal(8), dim=-1), normal(5)]
    if weighted:
        tensors += [torch.rand(2, 150, 3, generator=generator, dtype=torch.float64) for _ in range(2)]
    return op, [tensor.requires_grad_() for tensor in tensors]


@pytest.mark.parametrize("reading", READINGS)
def test_a_captured_graph_holds_it_as_one_node_with_the_same_gradients(reading):
    torch.compiler.reset()
    op, tensors = call(reading)
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    results = []
    for function in (op, compiled):
        outputs = [output for output in function(*tensors) if output is not None]
        loss = sum(output.sin().sum() for output in outputs)
        results.append([*outputs, *torch.autograd.grad(loss, tensors)])
    for found, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@needs_cpp_compiler
@pytest.mark.parametrize("reading", ["exact", "non-causal"])
def test_tokens_that_are_permuted_in_memory_are_compiled_with_the_same_gradients(reading):
    torch.compiler.reset()
    op, tensors = call(reading)
    permuted = [tensor.detach().transpose(1, 2).contiguous().requires_grad_() for tensor in tensors]

    def read(*tensors):
        return op(*(tensor.transpose(1, 2) for tensor in tensors))[0]

    results = []
    for function in (read, torch.compile(read, fullgraph=True)):
        output = function(*permuted)
        results.append([output, *torch.autograd.grad(output.sin().sum(), permuted)])
    for found, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("reading", READINGS)
def test_a_captured_graph_keeps_autocast_out_of_its_backward_pass(reading):
    op, tensors = call(reading)
    tensors = [tensor.detach().float().requires_grad_() for tensor in tensors]

    class Read(torch.nn.Module):
        def forward(self, *tensors):
            return op(*tensors)[0]

    loss = torch.export.export(Read(), tuple(tensors)).module()(*tensors).sin().sum()
    plain = torch.autograd.grad(loss, tensors, retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = torch.autograd.grad(loss, tensors)
    assert all(torch.equal(one, other) for one, other in zip(plain, under_autocast, strict=True))


def test_an_exported_program_takes_other_lengths():
    op, tensors = call("exact")

    class Module(torch.nn.Module):
        def forward(self, query, key, value):
            return op(query, key, value)[0]

    length = torch.export.Dim("length", min=2, max=4096)
    names = ("query", "key", "value")
    exported = torch.export.export(
        Module(), tuple(tensor.detach() for tensor in tensors), dynamic_shapes={name: {1: length} for name in names}
    )
    longer = [torch.cat([tensor, tensor], dim=1).detach() for tensor in tensors]
    torch.testing.assert_close(exported.module()(*longer), op(*longer)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("prefix", [8, 9])
@pytest.mark.parametrize("reading", [{}, {"causal": False}, {"refresh_interval": 4}], ids=str)
def test_the_gradient_of_an_initial_state_is_the_recurrent_one(reading, prefix):
    def tokens(time):
        return [torch.randn(2, time, 2, width, dtype=torch.float64) for width in (4, 4, 3)]

    settings = {"ridge": 0.7, "output_final_state": True, **reading}
    _, state = spectral_koopman_attention(*tokens(prefix), **settings)
    following = tokens(7)
    # One matrix for the outputs and one, not symmetric, for the last Gram matrix.
    weights = [torch.randn(2, 7, 2, 3, dtype=torch.float64), torch.randn(2, 2, 4, 4, dtype=torch.float64)]
    gradients = []
    for backend in ("recurrent", "chunked"):
        initial = state.clone()
        leaves = {name: tensor for name, tensor in initial.tensors().items() if tensor.is_floating_point()}
        for leaf in leaves.values():
            leaf.requires_grad_()
        output, last = spectral_koopman_attention(*following, **settings, initial_state=initial, backend=backend)
        found = (output * weights[0]).sum() + (last.statistics.gram * weights[1]).sum()
        gradients.append(torch.autograd.grad(found, list(leaves.values()), allow_unused=True, materialize_grads=True))
    for name, expected, parallel in zip(leaves, *gradients, strict=True):
        torch.testing.assert_close(parallel, expected, msg=lambda message, name=name: f"{name}: {message}")


def test_the_last_state_of_packed_sequences_takes_no_more_tokens_than_they_have(monkeypatch):
    gathered = []
    original = chunked._weighted_tokens

    def recorded(arguments, rows, places):
        gathered.append(tuple(places.shape))
        return original(arguments, rows, places)

    monkeypatch.setattr(chunked, "_weighted_tokens", recorded)
    inputs = [torch.randn(1, 40, 2, width, dtype=torch.float64) for width in (4, 4, 3)]
    bounds = torch.arange(0, 41, 4)
    settings = {"ridge": 1.0, "cu_seqlens": bounds, "output_final_state": True}
    for interval, most in ((64, 5), (3, 2)):  # all of 4 tokens; the last one of 4
        gathered.clear()
        _, expected = spectral_koopman_attention(*inputs, **settings, refresh_interval=interval, backend="recurrent")
        _, found = spectral_koopman_attention(*inputs, **settings, refresh_interval=interval, backend="chunked")
        assert gathered[-1] == (10, most)
        for name, tensor in expected.tensors().items():
            torch.testing.assert_close(found.tensors()[name], tensor, msg=name)
