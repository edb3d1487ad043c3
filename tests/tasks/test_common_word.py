"""Counts and margins. Labels, lengths and refusals: test_all_tasks.py."""

from collections import Counter

import pytest
import torch

from echo_ska.tasks import CommonWord

SETTINGS = [
    CommonWord(),
    CommonWord(most=2, margin=1, others=1),
    CommonWord(most=5, margin=1, others=4, length=256),
    CommonWord(cues=8, most=4, margin=3, others=2, length=128),
]


@pytest.mark.parametrize("task", SETTINGS, ids=str)
def test_the_answer_leads_every_other_value_by_the_margin(task: CommonWord) -> None:
    tokens = task.sample(30, torch.Generator().manual_seed(0)).input_ids
    for sequence in tokens.tolist():
        log, asked = sequence[: -2 * task.cues], sequence[-2 * task.cues :]
        stored = Counter((key, log[place + 1]) for place, key in enumerate(log) if key < 64)
        assert len(set(asked[::2])) == task.cues
        for key, answer in zip(asked[::2], asked[1::2], strict=True):
            times = sorted((count for (cue, _), count in stored.items() if cue == key), reverse=True)
            assert times == [task.most] + [task.most - task.margin] * task.others
            assert stored[key, answer] == task.most


def test_the_last_value_is_as_often_right_as_documented() -> None:
    task = CommonWord()
    tokens = task.sample(4000, torch.Generator().manual_seed(0)).input_ids
    log = tokens[:, : -2 * task.cues]
    places = torch.arange(log.shape[1]) * (log == tokens[:, [-2]])  # the last question's key
    last = log.gather(1, places.argmax(dim=1, keepdim=True) + 1)
    assert (last == tokens[:, -1:]).double().mean().item() == pytest.approx(3 / (3 + 2 * 1), abs=0.03)
