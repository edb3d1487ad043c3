"""The loss without logits is `F.cross_entropy` of the logits, gradients included, in the memory of a chunk of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from echo_ska.nn.cross_entropy import linear_cross_entropy

VOCABULARY, WIDTH = 37, 8
LABELS = {
    "all scored": lambda labels: labels,
    "some ignored": lambda labels: labels.masked_fill(torch.arange(labels.numel()).view_as(labels) % 3 == 0, -100),
    "a whole chunk ignored": lambda labels: labels.masked_fill(torch.arange(labels.shape[1]) < 8, -100),
    "none scored": lambda labels: torch.full_like(labels, -100),
}


def inputs(dtype=torch.float64, batch=2, time=19):
    generator = torch.Generator().manual_seed(0)
    states = 3 * torch.randn(batch, time, WIDTH, generator=generator, dtype=torch.float64)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64)
    labels = torch.randint(VOCABULARY, (batch, time), generator=generator)
    return states.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), labels


def by_logits(states, weight, labels, num_items=None):
    logits = (states @ weight.T).flatten(0, -2)
    if num_items is None:
        return F.cross_entropy(logits, labels.flatten())
    return F.cross_entropy(logits, labels.flatten(), reduction="sum") / num_items


@pytest.mark.parametrize("num_items", [None, 11, torch.tensor(100)], ids=["mean", "a number", "a tensor"])
@pytest.mark.parametrize("chunk_size", [1, 8, 100, None])
@pytest.mark.parametrize("kind", LABELS)
def test_loss_and_gradients_are_those_of_the_logits(kind, chunk_size, num_items):
    states, weight, labels = inputs()
    labels = LABELS[kind](labels)
    found = linear_cross_entropy(states, weight, labels, chunk_size=chunk_size, num_items_in_batch=num_items)
    expected = by_logits(states, weight, labels, num_items)
    torch.testing.assert_close(found.loss, expected, equal_nan=True, rtol=1e-12, atol=1e-12)
    scored = labels != -100
    assert found.scored == scored.sum()
    assert found.correct == ((states @ weight.T).argmax(-1) == labels)[scored].sum()
    upstream = torch.tensor(0.7, dtype=torch.float64)
    for got, wanted in zip(
        torch.autograd.grad(found.loss, (states, weight), upstream),
        torch.autograd.grad(expected, (states, weight), upstream),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="this PyTorch has no function to compare with")
@pytest.mark.parametrize("kind", [kind for kind in LABELS if kind != "none scored"])
def test_it_is_pytorch_s_own_where_there_is_one(kind):
    states, weight, labels = inputs()
    labels = LABELS[kind](labels)
    found = linear_cross_entropy(states, weight, labels, chunk_size=8).loss
    theirs = F.linear_cross_entropy(states.flatten(0, 1), weight, labels.flatten())
    torch.testing.assert_close(found, theirs, rtol=1e-12, atol=1e-12)
    for got, wanted in zip(
        torch.autograd.grad(found, (states, weight)), torch.autograd.grad(theirs, (states, weight)), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def test_tokens_that_are_not_scored_cost_no_products():
    states, weight, labels = inputs()
    labels[:, 3:] = -100

    def operations(fused):
        with FlopCounterMode(display=False) as counter:
            loss = linear_cross_entropy(states, weight, labels).loss if fused else by_logits(states, weight, labels)
            loss.backward()
        return counter.get_total_flops()

    assert operations(True) * labels.numel() == operations(False) * int((labels != -100).sum())


def test_second_derivatives_are_refused_and_not_0():
    for wanted in (0, 1):
        states, weight, labels = inputs()
        inputs_of = (states, weight)
        loss = linear_cross_entropy(states, weight, labels).loss
        (gradient,) = torch.autograd.grad(loss, inputs_of[wanted], create_graph=True)
        (expected,) = torch.autograd.grad(by_logits(states, weight, labels), inputs_of[wanted])
        torch.testing.assert_close(gradient, expected)
        for tensor in inputs_of:
            with pytest.raises(RuntimeError, match="linear_cross_entropy has first derivatives only"):
                torch.autograd.grad(gradient.square().sum() + 0 * tensor.sum(), tensor, retain_graph=True)


def test_another_label_can_be_the_ignored_one():
    states, weight, labels = inputs()
    found = linear_cross_entropy(states, weight, labels, ignore_index=5)
    expected = F.cross_entropy((states @ weight.T).flatten(0, 1), labels.flatten(), ignore_index=5)
    torch.testing.assert_close(found.loss, expected)
    assert found.correct == (((states @ weight.T).argmax(-1) == labels) & (labels != 5)).sum()


def test_a_weight_that_is_also_the_embedding_gets_both_gradients():
    _, weight, labels = inputs()

    def gradient(loss_of):
        states = weight[labels] * 0.5
        return torch.autograd.grad(loss_of(states), weight)[0]

    torch.testing.assert_close(
        gradient(lambda states: linear_cross_entropy(states, weight, labels, chunk_size=5).loss),
        gradient(lambda states: by_logits(states, weight, labels)),
    )


@pytest.mark.parametrize("asked", ["states", "weight", "neither"])
def test_only_the_gradients_that_are_needed(asked):
    states, weight, labels = inputs()
    states.requires_grad_(asked == "states")
    weight.requires_grad_(asked == "weight")
    loss = linear_cross_entropy(states, weight, labels).loss
    assert loss.requires_grad == (asked != "neither")
    if asked != "neither":
        loss.backward()
    assert (states.grad is not None, weight.grad is not None) == (asked == "states", asked == "weight")
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(states, weight, labels).loss, loss.detach())


@pytest.mark.parametrize("kind", ["all scored", "some ignored"])
@pytest.mark.parametrize("lower", [torch.bfloat16, torch.float16])
def test_autocast_multiplies_in_its_dtype_and_sums_in_float32(lower, kind):
    states, weight, labels = inputs(torch.float32)
    labels = LABELS[kind](labels)
    with torch.autocast("cpu", lower):
        found = linear_cross_entropy(states, weight, labels, chunk_size=8).loss
        expected = F.cross_entropy((states @ weight.T).float().flatten(0, 1), labels.flatten())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)  # the same products, rounded alike
    exact = by_logits(*(tensor.detach().double().requires_grad_() for tensor in (states, weight)), labels)
    torch.testing.assert_close(found.double(), exact, rtol=0.02, atol=0.02)
    got = torch.autograd.grad(found, (states, weight))
    for gradient, wanted in zip(got, torch.autograd.grad(expected, (states, weight)), strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - wanted).norm() < 0.01 * wanted.norm()


def test_float64_stays_float64_under_autocast():
    states, weight, labels = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_cross_entropy(states, weight, labels).loss
    torch.testing.assert_close(found, by_logits(states, weight, labels), rtol=1e-12, atol=1e-12)


def test_a_model_in_bfloat16_sums_its_weights_gradient_in_float32():
    states, weight, labels = inputs(torch.bfloat16, batch=8, time=500)
    loss = linear_cross_entropy(states, weight, labels, chunk_size=4).loss
    (found,) = torch.autograd.grad(loss, weight)
    exact_states, exact_weight = (tensor.detach().double().requires_grad_() for tensor in (states, weight))
    (exact,) = torch.autograd.grad(by_logits(exact_states, exact_weight, labels), exact_weight)
    assert found.dtype == torch.bfloat16
    assert float((found.double() - exact).norm() / exact.norm()) < 0.01


def peak_bytes(function):
    """The most bytes that torch's allocator has handed out at once while `function` ran, by torch's profiler."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        function()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def step_bytes(tokens, vocabulary, *, fused):
    states, weight = torch.randn(tokens, WIDTH, requires_grad=True), torch.randn(vocabulary, WIDTH, requires_grad=True)
    labels = torch.randint(vocabulary, (tokens,))

    def step():
        if fused:
            linear_cross_entropy(states, weight, labels, chunk_size=16).loss.backward()
        else:
            by_logits(states, weight, labels).backward()

    return peak_bytes(step)


def test_peak_memory_does_not_grow_with_the_vocabulary_times_the_tokens():
    more_tokens = step_bytes(1024, 2000, fused=True) - step_bytes(256, 2000, fused=True)
    # Hidden states and their gradient, labels and per-token figures; a token's logits alone would be 8,000 bytes.
    assert 0 < more_tokens <= (1024 - 256) * (3 * WIDTH * 4 + 32)
    whole = step_bytes(1024, 2000, fused=False)
    assert whole > 1024 * 2000 * 4 * 2  # logits and their gradient
    assert step_bytes(1024, 2000, fused=True) < whole / 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": torch.zeros(2, 3, dtype=torch.int64)}, r"labels \[2, 3\] do not fit"),
        ({"weight": torch.zeros(VOCABULARY, WIDTH + 1)}, "do not fit"),
        ({"chunk_size": 0}, "chunk_size must be at least 1"),
    ],
)
def test_what_is_refused(changes, message):
    states, weight, labels = inputs()
    arguments = {"hidden_states": states, "weight": weight, "labels": labels} | changes
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(**arguments)
