"""How much of a key it takes. Labels, lengths and refusals: test_all_tasks.py."""

import torch

from echo_ska.tasks import FuzzyRecall


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_last_token_of_a_key_alone_is_ambiguous() -> None:
    task = FuzzyRecall(pairs=6, key_tokens=2, symbols=3)
    shared = 0
    for tokens in task.sample(200, generator()).input_ids.tolist():
        asked = tokens[-18:]
        keys = list(zip(asked[::3], asked[1::3], strict=True))
        assert len(set(keys)) == 6
        shared += sum([last for _, last in keys].count(last) > 1 for _, last in keys)
    assert shared / (200 * 6) > 0.75


def test_all_keys_and_values_are_as_likely() -> None:
    task = FuzzyRecall(pairs=2, key_tokens=2, value_tokens=2, symbols=3)
    asked = task.sample(20_000, generator()).input_ids[:, -4:]
    share = (asked[:, 0] * 3 + asked[:, 1]).bincount(minlength=9) / 20_000
    assert torch.allclose(share, torch.full((9,), 1 / 9), atol=0.015)
    for column in (2, 3):
        share = (asked[:, column] - 64).bincount(minlength=32) / 20_000
        assert torch.allclose(share, torch.full((32,), 1 / 32), atol=0.01)


def test_keys_of_many_tokens_are_drawn_from_all_of_them() -> None:
    task = FuzzyRecall(pairs=2, key_tokens=20, symbols=8, length=100)  # 2^60 keys
    keys = task.sample(2000, generator()).input_ids[:, -21:-1]
    share = keys.flatten().bincount(minlength=8) / keys.numel()
    assert torch.allclose(share, torch.full((8,), 1 / 8), atol=0.01)
