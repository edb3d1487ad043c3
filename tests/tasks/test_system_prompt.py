"""Where the questions stand after easy and hard gaps. Labels, lengths and refusals: test_all_tasks.py."""

import pytest
import torch

from echo_ska.tasks import RecallBatch, SystemPrompt, answer_positions


def draw(task: SystemPrompt, rows: int = 400) -> tuple[RecallBatch, torch.Tensor]:
    """A batch, and the fillers before each question: int64 [B, questions]."""
    batch = task.sample(rows, torch.Generator().manual_seed(0))
    _, positions = answer_positions(batch.labels)
    cues = positions.view(rows, task.questions) - 1
    ends = torch.cat([torch.full((rows, 1), 2 + 2 * task.facts), cues[:, :-1] + 2], dim=1)
    return batch, cues - ends


@pytest.mark.parametrize("length", [30, 34, 64, 128, 1000, 4096])
def test_hard_gaps_are_long_and_easy_ones_short(length: int) -> None:
    fillers = length - 30  # beyond the one before each question
    unit = fillers // 16
    _, easy = draw(SystemPrompt(length=length, gaps="easy"))
    _, hard = draw(SystemPrompt(length=length, gaps="hard"))
    near = unit // 20  # few draws may miss the last of many lengths
    for gaps, least in ((easy, 1), (hard[:, :1], 1 + fillers // 2), (hard[:, 1:], 1 + unit)):
        assert least <= int(gaps.min()) <= least + near
        assert least + unit - near <= int(gaps.max()) <= least + unit


def test_facts_open_the_sequence_and_fillers_make_the_conversation() -> None:
    batch, _ = draw(SystemPrompt(gaps="hard"))
    tokens = batch.input_ids
    assert tokens[:, 0].unique().tolist() == [120]
    assert tokens[:, 17].unique().tolist() == [121]
    assert int(tokens[:, 1:17:2].max()) < 64 <= int(tokens[:, 2:17:2].min())
    assert bool((tokens[:, 18:] >= 96).sum(dim=1).eq(128 - 18 - 8).all())
    assert int(tokens[:, 18:].max()) < 120


def test_every_fact_is_asked_for_equally_often_and_none_twice() -> None:
    batch, _ = draw(SystemPrompt(), rows=4000)
    rows, positions = answer_positions(batch.labels)
    cues = batch.input_ids[rows, positions - 1].view(4000, 4)
    assert bool((cues.sort(dim=1).values.diff(dim=1) > 0).all())
    place = (cues[:, :, None] == batch.input_ids[:, None, 1:17:2]).double().mean(dim=0)  # [questions, facts]
    assert torch.allclose(place, torch.full((4, 8), 1 / 8, dtype=torch.float64), atol=0.03)
