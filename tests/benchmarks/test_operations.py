"""Counted operations are those of the products, counted by hand or by running them."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from echo_ska.benchmarks import definitions, operations
from echo_ska.benchmarks.linear_attention import linear_attention


def test_exact_read_by_hand():
    """One head, 3 tokens, r = 2, P = 5, S = 7, K = 1: products of a token, each with its two sizes."""
    forward = 2 * (
        (2 * 2)  # H = X J
        + (2 * 7)  # X H^T
        + (7 * 2)  # B^-1 H
        + 2 * (2 * 2 + 2 * 7 + 7 * 2)  # two solves: Y J, Y W^T, (.) W
        + (2 * 2 + 2 * 7 + 7 * 2)  # one step: p M^T, p X_prev^T, (.) X
        + (2 * 5 + 2 * 7 + 7 * 5)  # the read: p C^T, p X^T, (.) V
        + (2 * 2 + 2 * 2 + 2 * 5)  # J, M and C after the chunk
    )
    counted = operations.exact_read(3, heads=1, rank=2, head_dim=5, power=1, chunk_size=7)
    assert counted.forward == 3 * forward
    backward = 2 * (
        (5 * 2 + 5 * 7 + 7 * 2)  # into p: y_bar C, y_bar V^T, (.) X
        + (2 * 5 + 2 * 7 + 7 * 5)  # into the values: X D_C^T, p X^T once more, (.)^T y_bar
        + (5 * 2 + 7 * 2)  # into the keys: V D_C, (.)^T p
        + (5 * 2)  # D_C
        + 2 * (2 * 2 + 2 * 7 + 7 * 2)  # two solves
        + 2 * (2 * 2)  # D_G
        + 2 * (4 * 2 * 7)  # two scores of the own tokens and two products with them
        + (2 * 2 + 2 * 2)  # c_bar M and D_M
        + (4 * 2 * 7)  # the scores with X_prev, and the products with both
        + (2 * 2)  # D_G to the keys
        + 2 * (2 * 2)  # D_M to the keys and to those before them
    )
    assert counted.backward == 3 * backward
    assert counted.total == 3 * (forward + backward)


def test_chunk_causal_read_by_hand():
    """r = 3, P = 2, K = 2, one factorisation in 6 tokens."""
    a_token = 2 * (3 * 3 + 3 * 3 + 2 * 3) + 2 * (3 * 3 + 2 * 3 * 3 + 3 * 2)  # sums; L^-1 q, two steps, the read
    a_chunk = 3**3 / 3 + 3**3 / 3 + 2 * 2 * 3**3 + 2 * 2 * 3 * 3  # L, L^-1, both sides of M, C L^-T
    counted = operations.chunk_causal_read(6, heads=1, rank=3, head_dim=2, power=2, refresh_interval=6)
    assert counted.forward == pytest.approx(6 * a_token + a_chunk)
    assert counted.backward == 2 * counted.forward


def test_power_costs_a_solve_and_a_step():
    def forward(power):
        return operations.exact_read(1, heads=1, rank=4, head_dim=2, power=power, chunk_size=8).forward

    one_more = 2 * (4 * 4 + 2 * 4 * 8) * 2
    assert forward(1) - forward(0) == forward(3) - forward(2) == one_more


def test_softmax_attention_counts_the_pairs_that_are_seen():
    pairs = sum(1 for t in range(9) for s in range(9) if s <= t)
    counted = operations.softmax_attention(9, heads=2, head_dim=3)
    assert counted.forward == 2 * pairs * (2 * 3 + 2 * 3)
    assert counted.backward == 2 * pairs * 5 * 2 * 3
    query, key, value = (torch.randn(1, 9, 2, 3) for _ in range(3))
    with FlopCounterMode(display=False) as counter:
        definitions.softmax_attention(query, key, value)
    assert counter.get_total_flops() * pairs / 81 == counted.forward


def test_linear_attention_counts_what_runs():
    heads, rank, head_dim, size, tokens = 3, 4, 5, 8, 24
    inputs = [torch.randn(1, tokens, heads, width, requires_grad=True) for width in (rank, rank, head_dim)]
    counted = operations.linear_attention(tokens, heads=heads, rank=rank, head_dim=head_dim, chunk_size=size)
    with FlopCounterMode(display=False) as counter:
        output, _ = linear_attention(*inputs, chunk_size=size)
    assert counter.get_total_flops() == counted.forward
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(output, inputs, torch.ones_like(output))
    assert counter.get_total_flops() == counted.backward


def test_heads_and_tokens_multiply():
    one = operations.exact_read(1, heads=1, rank=4, head_dim=3, power=2)
    many = operations.exact_read(10, heads=3, rank=4, head_dim=3, power=2)
    assert (many.forward, many.backward) == (30 * one.forward, 30 * one.backward)
