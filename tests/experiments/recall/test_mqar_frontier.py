"""The frontier's budgets: what is counted, and that every model is the largest within its own."""

import pytest
from made_up import of_trial

from echo_ska.experiments.recall import mqar_frontier
from echo_ska.experiments.recall.mqar_frontier import (
    BUDGETS,
    FAMILIES,
    Family,
    arms,
    counted_bytes,
    largest_within,
    state_bytes,
)
from echo_ska.models import EchoConfig


def counted(family: Family, size: int) -> int:
    return counted_bytes(EchoConfig(vocab_size=512, **family.config(size)))


@pytest.mark.parametrize(
    ("name", "size", "numbers"),
    [
        ("ska, power 0", 5, 2 * (15 + 5 * 32)),  # a triangle of G, and C
        ("ska, power 0, one wide head", 5, 15 + 5 * 64),
        ("ska, power 2 blended", 5, 2 * (15 + 5 * 32 + 25 + 5)),  # and M, with the key before
        ("linear attention", 5, 2 * 5 * 32),
        ("gated delta net", 5, 2 * 5 * 32),
        ("mesa net", 5, 2 * (15 + 5 * 32)),
        ("based", 2, 2 * 33 * (1 + 2 + 3)),
        ("mamba-2", 5, 128 * 5),
        ("sliding attention", 5, 2 * 5 * 2 * 32),  # keys and values, not the count of tokens
    ],
)
def test_states_are_counted_in_float32_over_both_layers_without_convolutions(name, size, numbers):
    assert counted(FAMILIES[name], size) == 4 * 2 * numbers


@pytest.mark.parametrize("name", FAMILIES)
def test_every_model_is_the_largest_within_its_budget(name):
    family = FAMILIES[name]
    for budget in BUDGETS:
        size = largest_within(family, budget)
        if size is None:
            assert name == "mamba-3"  # its rotated channels come in pairs
            continue
        assert counted(family, size) <= budget
        for larger in range(size + 1, size + 9):
            try:
                assert counted(family, larger) > budget
            except ValueError:  # a size that it does not take
                assert name == "mamba-3"


def test_there_is_no_model_within_a_few_bytes():
    assert largest_within(FAMILIES["linear attention"], 16) is None


def test_bytes_of_a_record_are_those_of_its_arm():
    for trial in mqar_frontier.trials():
        record = of_trial(trial, lambda *_: 0.5)
        if trial.arm.name == "softmax attention":
            assert state_bytes(record) == 4 * 2 * 2 * 512 * 64  # keys and values of two layers, 512 tokens of width 64
        else:
            assert state_bytes(record) == counted_bytes(EchoConfig(vocab_size=512, **trial.arm.fields))


def test_arms_have_names_of_their_own_and_the_schedule_asks_what_it_trains():
    names = [arm.name for arm in arms(BUDGETS)]
    assert len(set(names)) == len(names)
    trial = mqar_frontier.trials()[0]
    assert trial.data().batch(0)["input_ids"].numel() == 2048
    assert {question.task for question in mqar_frontier.TUNED_ON} == {task for task, _, _ in mqar_frontier.SCHEDULE}
