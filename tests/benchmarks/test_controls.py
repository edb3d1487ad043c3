"""The controls compute what their definitions say."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from echo_ska.benchmarks import definitions
from echo_ska.benchmarks.linear_attention import linear_attention
from echo_ska.benchmarks.plan import Sizes
from echo_ska.benchmarks.sources import INPUTS, Source, tokens_of
from echo_ska.ops import spectral_koopman_attention

SIZES = Sizes(heads=2, rank=4, head_dim=3, state_size=5)


def draw(kind: str, tokens: int):
    return INPUTS[kind](SIZES, Source(torch.float64, "cpu"), tokens)


@pytest.mark.parametrize("tokens", [1, 7, 8, 63])
def test_linear_attention_equals_its_definition_with_gradients(tokens):
    inputs = {name: tensor.requires_grad_() for name, tensor in draw("regression", tokens).items()}
    found = linear_attention(**inputs, chunk_size=8)[0]
    expected = definitions.linear_attention(**inputs)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    target = torch.randn(found.shape, dtype=torch.float64)
    for got, wanted in zip(
        torch.autograd.grad(found, list(inputs.values()), target),
        torch.autograd.grad(expected, list(inputs.values()), target),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-11)


def test_linear_attention_goes_on_from_its_state():
    inputs = draw("regression", 21)
    whole, final = linear_attention(**inputs, chunk_size=4)
    first, state = linear_attention(**tokens_of(inputs, 0, 9), chunk_size=4)
    second, last = linear_attention(**tokens_of(inputs, 9, 21), state=state, chunk_size=4)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(last, final)
    state = torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    few = tokens_of(inputs, 0, 9)
    assert torch.autograd.gradcheck(lambda s: linear_attention(**few, state=s, chunk_size=4), [state])


def test_softmax_attention_is_torchs():
    inputs = draw("softmax", 11)
    heads_first = (tensor.transpose(1, 2) for tensor in inputs.values())
    expected = F.scaled_dot_product_attention(*heads_first, is_causal=True).transpose(1, 2)
    torch.testing.assert_close(definitions.softmax_attention(**inputs), expected)


def test_mesa_net_without_decay_is_ridge_regression():
    inputs = draw("gated", 13)
    inputs["log_decay"] = torch.zeros_like(inputs["log_decay"])
    found = definitions.mesa_net(**inputs, ridge=0.7)
    inputs.pop("log_decay")
    expected, _ = spectral_koopman_attention(
        **inputs, ridge=torch.tensor(0.7, dtype=torch.float64), power=0, backend="recurrent"
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_the_delta_rule_reads_what_it_just_wrote():
    inputs = draw("gated", 9)
    inputs |= {"query": inputs["key"], "write_weight": torch.ones_like(inputs["write_weight"])}
    read = definitions.gated_delta_rule(**inputs) * SIZES.rank**0.5
    torch.testing.assert_close(read, inputs["value"])
