"""Rows of a mixture are drawn by weight, and each is its task's. Labels and refusals: test_all_tasks.py."""

import json

import pytest
import torch

from echo_ska.tasks import (
    InverseMatching,
    MultiHop,
    MultiQueryRecall,
    MultiQueryRecallGrid,
    Needle,
    RecallMixture,
    SystemPrompt,
    ToolTrace,
)
from echo_ska.training import RecallData


def test_the_default_is_system_prompts_and_tool_traces_half_and_half() -> None:
    tokens = RecallMixture().sample(8000, torch.Generator().manual_seed(0)).input_ids
    prompts, traces = int((tokens[:, 0] == 120).sum()), int((tokens[:, 0] == 122).sum())
    assert prompts + traces == 8000
    assert prompts == pytest.approx(4000, abs=240)
    gaps = (tokens[tokens[:, 0] == 120, 18:] < 64).double().argmax(dim=1)  # fillers before the first question
    assert (gaps > 40).double().mean().item() == pytest.approx(0.5, abs=0.04)  # hard ones


def test_parts_of_several_alphabets_leave_only_the_questions_to_tell() -> None:
    mixed = RecallMixture(((Needle(), 1.0), (Needle(num_keys=32), 1.0)))
    batch = mixed.sample(20, torch.Generator().manual_seed(0))
    assert {role for row in mixed.roles(batch) for role in row} == {"ask", "."}


def test_rows_are_drawn_by_weight() -> None:
    parts = ((Needle(needles=1), 1), (MultiQueryRecallGrid(vocab_size=120), 2.0), (ToolTrace().with_length(64), 5))
    tokens = RecallMixture(parts).sample(8000, torch.Generator().manual_seed(0)).input_ids
    traces = tokens[:, 0] == 122
    answers = ((tokens >= 64) & (tokens < 96)).sum(dim=1)
    assert traces.double().mean().item() == pytest.approx(5 / 8, abs=0.03)
    assert (answers == 2).double().mean().item() == pytest.approx(1 / 8, abs=0.02)  # one needle: stored and answered


def test_a_mixture_of_one_task_is_that_task() -> None:
    alone, source = RecallMixture(((Needle(), 3),)), torch.Generator().manual_seed(1)
    torch.rand(4, dtype=torch.float64, generator=source)  # which task each row is of
    expected = Needle().sample(4, source)
    drawn = alone.sample(4, torch.Generator().manual_seed(1))
    assert torch.equal(drawn.input_ids, expected.input_ids)
    assert torch.equal(drawn.labels, expected.labels)
    assert (alone.chance, alone.vocab_size, alone.length) == (1 / 32, 128, 64)


def test_chance_counts_the_answers_of_each_task() -> None:
    mixture = RecallMixture(((InverseMatching(), 3), (Needle(needles=4), 1), (MultiHop(written=True), 0.5)))
    written = MultiHop(written=True).chance
    assert mixture.chance == pytest.approx((3 * 1 / 5 + 1 * 4 / 32 + 0.5 * 4 * written) / (3 + 4 + 2))


def test_tasks_of_other_alphabets_may_join() -> None:
    mixture = RecallMixture(((MultiQueryRecall(), 1), (Needle(), 1)))
    assert mixture.vocab_size == 8192
    assert mixture.with_length(256).length == 256
    with pytest.raises(ValueError, match="length must be even"):
        mixture.with_length(255)


def test_lists_of_parts_are_kept_as_tuples() -> None:
    mixture = RecallMixture([[Needle(), 1]])  # type: ignore[arg-type]
    assert mixture == RecallMixture(((Needle(), 1),))
    assert hash(mixture) == hash(RecallMixture(((Needle(), 1),)))


def test_a_run_record_says_which_tasks_with_which_settings() -> None:
    data = RecallData(RecallMixture(((SystemPrompt(gaps="hard"), 1), (ToolTrace(), 2.0))), 4, seed=3, length=256)
    assert data.batch(0)["input_ids"].shape == (4, 256)
    described = json.loads(json.dumps(data.describe()))
    assert described == data.describe()
    assert described["task"] == "RecallMixture"
    (prompt, one), (trace, two) = described["parts"]
    assert (prompt["task"], prompt["gaps"], prompt["length"], one) == ("SystemPrompt", "hard", 256, 1)
    assert (trace["task"], trace["repeats"], trace["length"], two) == ("ToolTrace", 4, 256, 2.0)
