"""Which values are old, and how often. Labels, lengths and refusals: test_all_tasks.py."""

import pytest
import torch

from echo_ska.tasks import KeySwitch


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("share", "pairs", "switched"), [(0, 8, 0), (0.5, 8, 4), (1, 8, 8), (0.34, 3, 1), (0.1, 4, 0), (0.9, 4, 4)]
)
def test_the_share_says_how_many_keys_are_re_bound(share: float, pairs: int, switched: int) -> None:
    assert KeySwitch(share=share, pairs=pairs, length=128).switched == switched


@pytest.mark.parametrize("task", [KeySwitch(), KeySwitch(share=0.25, rebinds=3), KeySwitch(share=0)], ids=str)
def test_who_takes_the_first_value_is_right_with_the_keys_never_re_bound_alone(task: KeySwitch) -> None:
    for tokens in task.sample(100, generator()).input_ids.tolist():
        log, asked = tokens[: -2 * task.pairs], tokens[-2 * task.pairs :]
        first = {key: log[place + 1] for place, key in reversed(list(enumerate(log))) if key < 64}
        right = [first[key] == value for key, value in zip(asked[::2], asked[1::2], strict=True)]
        assert right.count(True) == task.pairs - task.switched


def test_old_values_are_uniform_over_the_others_and_the_order_is_random() -> None:
    task = KeySwitch(pairs=1, share=1, rebinds=1, length=8, vocab_size=16, num_keys=2, num_values=4)
    tokens = task.sample(8000, generator()).input_ids[:, :4]
    stored = tokens[(tokens[:, 0] < 2) & (tokens[:, 2] < 2)]  # both pairs at the start: an old and the latest value
    apart = (stored[:, 1] - stored[:, 3]) % 4
    assert torch.allclose(apart.bincount(minlength=4) / len(apart), torch.tensor([0, 1 / 3, 1 / 3, 1 / 3]), atol=0.05)
    task = KeySwitch(pairs=2, share=0.5)
    log = task.sample(6000, generator()).input_ids[:, :-4]
    keys = log[log < 64].view(-1, 3)  # one of them comes once
    alone = [int((keys[:, place, None] == keys).sum(1).eq(1).sum()) for place in range(3)]
    assert all(abs(count - 2000) < 200 for count in alone)
