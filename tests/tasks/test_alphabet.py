"""The shared alphabet: who has which tokens, and that it fits the paper's grid."""

import pytest
import torch

from echo_ska.tasks import TASKS, Alphabet, Marker, MultiQueryRecallGrid
from echo_ska.tasks.layout import AlphabetTask


def test_the_default_is_keys_values_fillers_and_eight_markers() -> None:
    alphabet = Alphabet()
    assert (alphabet.first_value, alphabet.first_filler, alphabet.first_marker) == (64, 96, 120)
    assert [alphabet.marker(marker) for marker in Marker] == [120, 121, 122, 123, 124, 125, 126]


def test_all_tasks_of_the_alphabet_have_the_same_one_and_it_is_the_grids() -> None:
    alphabets = {task().alphabet for task in TASKS.values() if issubclass(task, AlphabetTask)}
    assert alphabets == {Alphabet()}
    grid = MultiQueryRecallGrid(vocab_size=Alphabet().first_marker)
    assert (grid.num_keys, grid.num_values) == (Alphabet().num_keys, Alphabet().num_values)
    tokens = grid.sample(50, torch.Generator().manual_seed(0)).input_ids
    gap = tokens[:, 2 * grid.pairs : -2 * grid.pairs]
    assert (int(gap.min()), int(gap.max())) == (96, 119)


def test_draws_cover_values_and_fillers_and_nothing_else() -> None:
    alphabet, generator = Alphabet(vocab_size=32, num_keys=12, num_values=4), torch.Generator().manual_seed(0)
    assert alphabet.draw_values((20, 30), generator).unique().tolist() == [12, 13, 14, 15]
    assert alphabet.draw_fillers((20, 30), generator).unique().tolist() == list(range(16, 24))
    assert alphabet.marker(Marker.SYSTEM) == 24


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"vocab_size": 104}, "64 keys, 32 values, a filler and 8 markers need a vocab_size of at least 105, got 104"),
        ({"num_keys": 1}, "num_keys must be a whole number of at least 2, got 1"),
        ({"num_values": True}, "num_values must be"),
        ({"vocab_size": "128"}, "vocab_size must be"),
    ],
)
def test_an_alphabet_without_room_is_refused(settings: dict[str, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Alphabet(**settings)
