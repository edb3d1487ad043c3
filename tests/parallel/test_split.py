"""Parts of a batch put together again are the batch, and every label stands with the token before it."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from echo_ska.parallel import packed_bounds, part_bounds, split_sequence


@pytest.mark.parametrize(("length", "world", "multiple_of"), [(100, 3, 1), (7, 7, 1), (100, 4, 8), (64, 1, 8)])
def test_bounds_are_nearly_equal_multiples(length, world, multiple_of) -> None:
    bounds = part_bounds(length, world, multiple_of)
    sizes = [end - begin for begin, end in itertools.pairwise(bounds)]
    assert (bounds[0], bounds[-1], len(bounds)) == (0, length, world + 1)
    assert all(bound % multiple_of == 0 for bound in bounds[:-1])
    assert max(sizes) - min(sizes) < 2 * multiple_of + (multiple_of == 1)


def test_too_few_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="3 tokens cannot be cut into 4 parts: use longer"):
        part_bounds(3, 4)
    with pytest.raises(ValueError, match="in multiples of 8"):
        part_bounds(31, 4, 8)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_labels_are_shifted_over_the_cuts(world) -> None:
    ids = torch.arange(2 * 23).view(2, 23)
    labels = ids.clone()
    labels[0, 11] = -100
    parts = [split_sequence({"input_ids": ids, "labels": labels}, rank, world) for rank in range(world)]
    assert torch.equal(torch.cat([part["input_ids"] for part in parts], dim=1), ids)
    shifted = torch.cat([part["shift_labels"] for part in parts], dim=1)
    assert torch.equal(shifted[:, :-1], labels[:, 1:])
    assert bool((shifted[:, -1] == -100).all())


def test_packed_sequences_go_on_in_sequence_0_of_the_next_part() -> None:
    batch = {"input_ids": torch.zeros(1, 30, dtype=torch.int64), "cu_seqlens": torch.tensor([0, 4, 10, 25, 30])}
    parts = [split_sequence(batch, rank, 3)["cu_seqlens"].tolist() for rank in range(3)]
    assert parts == [[0, 4, 10], [0, 0, 10], [0, 5, 10]]


def test_parts_of_packed_sequences_begin_at_multiples_within_their_sequence() -> None:
    generator = random.Random(0)
    impossible = 0
    for _ in range(300):
        length, world = generator.randrange(8, 60), generator.randrange(1, 5)
        interval, least = generator.choice([2, 5, 8]), generator.choice([1, 3])
        packing = sorted({0, length, *(generator.randrange(length) for _ in range(generator.randrange(5)))})
        places = [place for begin, end in itertools.pairwise(packing) for place in range(begin, end, interval)]
        possible = any(
            all(end - begin >= least for begin, end in itertools.pairwise([0, *cuts, length]))
            for cuts in itertools.combinations(places[1:], world - 1)
        )
        if not possible:
            impossible += 1
            with pytest.raises(
                ValueError, match=f"packed sequences cannot be cut into {world} parts of at least {least}"
            ):
                packed_bounds(packing, world, interval, least)
            continue
        bounds = packed_bounds(packing, world, interval, least)
        assert (bounds[0], bounds[-1], len(bounds)) == (0, length, world + 1)
        assert set(bounds[:-1]) <= set(places)
        assert all(end - begin >= least for begin, end in itertools.pairwise(bounds))
        if all(end - begin > interval + least for begin, end in itertools.pairwise(part_bounds(length, world))):
            equal = [length * part // world for part in range(world)]
            assert bounds[:-1] == [max(place for place in places if place <= cut) for cut in equal]
    assert impossible > 10


def test_packed_sequences_are_split_where_a_refresh_interval_lets_them() -> None:
    batch = {"input_ids": torch.arange(30)[None], "cu_seqlens": torch.tensor([0, 5, 5, 27, 30])}
    parts = [split_sequence(batch, rank, 2, multiple_of=8) for rank in range(2)]
    assert [part["input_ids"].shape[1] for part in parts] == [13, 17]  # 15 lies at 10 of the sequence that begins at 5
    assert [part["cu_seqlens"].tolist() for part in parts] == [[0, 5, 13], [0, 14, 17]]


def test_what_cannot_be_cut_is_refused() -> None:
    ids = torch.zeros(2, 8, dtype=torch.int64)
    with pytest.raises(ValueError, match="not of position_ids"):
        split_sequence({"input_ids": ids, "position_ids": ids}, 0, 2)
    with pytest.raises(ValueError, match="a padded batch cannot be cut"):
        split_sequence({"input_ids": ids, "attention_mask": ids}, 0, 2)
    assert split_sequence({"input_ids": ids, "attention_mask": ids + 1}, 0, 2)["input_ids"].shape == (2, 4)
    for bounds in ([0, 8], [0, 9, 8], [1, 4, 8], [0, 4, 7], [0, 0, 8]):
        with pytest.raises(ValueError, match="3 increasing numbers from 0 to 8"):
            split_sequence({"input_ids": ids}, 0, 2, bounds=bounds)
