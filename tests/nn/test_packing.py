"""Packed sequences run in padded groups: in order, as if alone, and at less than twice their tokens."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from echo_ska.nn import SoftmaxAttention
from echo_ska.nn.packing import like_lengths, run_by_length, sequence_lengths, token_places

UNEQUAL = (5, 40, 1, 3, 0, 2, 33, 0, 1)
PACKS = {
    "one long": (4096, *[32] * 128),
    "long last": (*[1] * 200, 500),
    "every length": tuple(range(300)),
    "powers of two": tuple(2**power for power in range(12)),
    "below powers of two": tuple(2**power - 1 for power in range(12)),
    "a short one last": (7, 4),
    "unequal": UNEQUAL,
    "a single one": (7,),
    "no tokens": (0, 0),
}


def boundaries(lengths):
    return torch.tensor([0, *itertools.accumulate(lengths)])


def running(begin, tokens):
    """Sums so far, [n, t, d], of tokens after `begin` [n, d], and the last of them."""
    return begin[:, None] + tokens.cumsum(1), begin + tokens.sum(1)


@pytest.mark.parametrize("lengths", PACKS.values(), ids=PACKS)
def test_a_group_holds_less_than_twice_its_tokens_and_four_times_their_squares(lengths):
    groups = like_lengths(lengths)
    assert sorted(itertools.chain(*groups)) == list(range(len(lengths)))
    assert len(groups) <= max(lengths).bit_length() + 1
    for group in groups:
        own = [lengths[sequence] for sequence in group]
        assert len(own) * max(own) <= max(0, 2 * sum(own) - 1)
        assert len(own) * max(own) ** 2 <= 4 * sum(length**2 for length in own)


def test_groups_are_alike_in_every_size():
    assert like_lengths([4, 5, 4, 4], [9, 9, 90, 15]) == [[0, 1, 3], [2]]


@pytest.mark.parametrize("lengths", PACKS.values(), ids=PACKS)
def test_what_is_run_is_less_than_twice_the_tokens(lengths):
    seen = []

    def spy(tokens):
        seen.append(tokens.shape[0] * tokens.shape[1])
        return (tokens,)

    packed = torch.randn(1, sum(lengths), 2)
    (found,) = run_by_length(spy, (), (packed,), boundaries(lengths))
    assert torch.equal(found, packed)
    assert sum(seen) <= max(0, 2 * sum(lengths) - 1)


@pytest.mark.parametrize("lengths", [*PACKS.values(), (3, 3, 3)], ids=[*PACKS, "equal"])
def test_groups_give_what_each_sequence_gives_alone_with_gradients(lengths):
    torch.manual_seed(0)
    packed = torch.randn(1, sum(lengths), 2, dtype=torch.float64, requires_grad=True)
    begin = torch.randn(len(lengths), 2, dtype=torch.float64, requires_grad=True)
    found = run_by_length(running, (begin,), (packed,), boundaries(lengths))
    alone = [running(*each) for each in zip(begin.split(1), packed.split(lengths, dim=1), strict=True)]
    expected = torch.cat([sums for sums, _ in alone], dim=1), torch.cat([last for _, last in alone])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    gradients = [
        torch.autograd.grad(sums.sin().sum() + last.cos().sum(), (packed, begin)) for sums, last in (found, expected)
    ]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("cu_seqlens", [torch.arange(0, 13, 3), None], ids=["packed", "dense"])
def test_equal_lengths_are_run_at_once_and_never_copied(cu_seqlens):
    tokens, rows = torch.randn(1 if cu_seqlens is not None else 4, 12, 3), torch.randn(4, 2)
    calls = []

    def spy(of_rows, of_tokens):
        calls.append((of_rows.data_ptr(), of_tokens.data_ptr()))
        return of_tokens, of_rows

    found = run_by_length(spy, (rows,), (tokens,), cu_seqlens)
    assert calls == [(rows.data_ptr(), tokens.data_ptr())]
    assert [tensor.data_ptr() for tensor in found] == [tokens.data_ptr(), rows.data_ptr()]
    assert [tensor.shape for tensor in found] == [tokens.shape, rows.shape]


def test_compiled_layers_leave_the_groups_to_python():
    """Their number and shapes are another for every batch, which would be compiled anew."""
    compiling = []

    def spy(tokens):
        compiling.append(torch.compiler.is_compiling())
        return (2 * tokens,)

    def layer(packed, cu_seqlens):
        return run_by_length(spy, (), (packed + 1,), cu_seqlens)[0]

    packed, compiled = torch.randn(1, 7, 2), torch.compile(layer, backend="eager")
    assert torch.equal(compiled(packed, torch.tensor([0, 6, 7])), 2 * (packed + 1))
    assert compiling == [False, False]
    compiled(packed, None)
    assert compiling[2:] == [True]


def test_places_of_tokens():
    packed = torch.zeros(1, 6, 2)
    sequences, places = token_places(packed, torch.tensor([0, 2, 2, 6], dtype=torch.int32))
    assert sequences.tolist() == [[0, 0, 2, 2, 2, 2]]
    assert places.tolist() == [[0, 1, 0, 1, 2, 3]]
    sequences, places = token_places(torch.zeros(2, 3, 5), None)
    assert sequences.tolist() == [[0, 0, 0], [1, 1, 1]]
    assert places.tolist() == [[0, 1, 2], [0, 1, 2]]
    assert sequence_lengths(packed, torch.tensor([0, 2, 2, 6])).tolist() == [2, 0, 4]


@pytest.mark.parametrize(
    ("past", "new"),
    [
        ([0] * 65, [256] + [4] * 64),
        ([256] + [1] * 64, [2] * 65),
        ([1, 256] * 20, [256, 1] * 20),
    ],
    ids=["long ones are new", "long ones are past", "both"],
)
def test_attention_scores_are_four_times_those_of_the_sequences_at_most(monkeypatch, past, new):
    mixer, scores = SoftmaxAttention(32, num_heads=2).double(), []
    attend = F.scaled_dot_product_attention

    def spy(query, key, value, **settings):
        scores.append(query.shape[0] * query.shape[2] * key.shape[2])
        return attend(query, key, value, **settings)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    _, state = mixer(torch.randn(1, sum(past), 32, dtype=torch.float64), cu_seqlens=boundaries(past), output_state=True)
    wanted = sum(length * (length + before) for length, before in zip(new, past, strict=True))
    for given in (state, None) if not any(past) else (state,):
        scores.clear()
        mixer(torch.randn(1, sum(new), 32, dtype=torch.float64), given, cu_seqlens=boundaries(new))
        assert sum(scores) <= 4 * wanted
