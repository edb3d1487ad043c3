"""The loop over chunks, on a function simple enough to know the answer."""

from __future__ import annotations

import pytest
import torch

from echo_ska.nn.peers.chunks import scan_chunks


def sums(memory, tokens):
    """Reads the running sum of the tokens, [G, C, P]; the memory [G, P, 1] is the sum so far."""
    read = memory.mT + tokens.cumsum(1)
    return read, read[:, -1:].mT


@pytest.mark.parametrize("size", [1, 3, 10, 99])
def test_any_chunk_size_is_the_same_function(size):
    tokens = torch.randn(2, 10, 3, 4, dtype=torch.float64, requires_grad=True)
    memory = torch.randn(2, 3, 4, 1, dtype=torch.float64, requires_grad=True)
    read, final = scan_chunks(sums, memory, (tokens,), size)
    expected = memory[:, None, :, :, 0] + tokens.cumsum(1)
    assert torch.allclose(read, expected)
    assert torch.allclose(final[..., 0], expected[:, -1])
    assert torch.autograd.gradcheck(lambda *x: scan_chunks(sums, x[0], (x[1],), size), (memory, tokens))


def test_the_backward_pass_keeps_the_inputs_and_a_memory_a_chunk():
    tokens = torch.randn(1, 64, 1, 4, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        scan_chunks(sums, torch.zeros(1, 1, 4, 1), (tokens,), 16)
    assert sum(kept) == 64 * 4 + 4 * 4


def test_second_derivatives_are_refused_and_not_0():
    tokens = torch.randn(1, 8, 1, 2, requires_grad=True)
    memory = torch.randn(1, 1, 2, 1, requires_grad=True)
    read, _ = scan_chunks(lambda memory, tokens: sums(memory, tokens**2), memory, (tokens,), 4)
    for loss in (read.sum(), read.sin().sum()):  # what comes from above is a constant, or is not
        (gradient,) = torch.autograd.grad(loss, tokens, create_graph=True)
        for tensor in (tokens, memory):
            with pytest.raises(RuntimeError, match="first derivatives only"):
                torch.autograd.grad(gradient.square().sum() + 0 * tensor.sum(), tensor, retain_graph=True)
