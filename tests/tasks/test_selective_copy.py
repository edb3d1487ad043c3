"""What is written, and where the data stand. Labels, lengths and refusals: test_all_tasks.py."""

import torch

from echo_ska.tasks import SelectiveCopy


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_written_answers_are_read_and_others_are_not() -> None:
    for written in (False, True):
        batch = SelectiveCopy(count=4, written=written).sample(50, generator())
        asked, labels = batch.input_ids[:, -5:], batch.labels[:, -4:]
        assert bool((asked[:, 0] == 125).all())
        if written:
            assert torch.equal(asked[:, 1:], labels)
        else:
            assert bool((asked[:, :-1] == 125).all())
            assert bool(((asked[:, -1] >= 96) & (asked[:, -1] < 120)).all())
            assert int((batch.input_ids == 125).sum()) == 4 * 50


def test_both_forms_store_the_same_data() -> None:
    read, unread = (SelectiveCopy(written=written).sample(20, generator(1)) for written in (True, False))
    assert torch.equal(read.labels, unread.labels)
    assert torch.equal(read.input_ids[:, :-8], unread.input_ids[:, :-8])


def test_data_stand_anywhere_among_the_noise() -> None:
    task = SelectiveCopy(count=4, length=24)  # 17 tokens before the pause
    tokens = task.sample(10_000, generator()).input_ids
    values = (tokens >= 64) & (tokens < 96)
    share = values[:, :17].double().mean(0)
    assert torch.allclose(share, torch.full((17,), 4 / 17, dtype=torch.float64), atol=0.025)
    assert not bool(values[:, 17:].any())
