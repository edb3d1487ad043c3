"""A whole conversion: its states are measured in order, its control takes as many steps, and it can be repeated."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from host_models import VOCABULARY, host, tokens

from echo_ska.convert import distil, load_converted
from echo_ska.convert.conversion import ConversionMeasure, ConversionRecipe, cache_table, convert, trained_on
from echo_ska.convert.data import TokenWindows
from echo_ska.convert.measure import copying, held_out_loss
from echo_ska.training import TrainingConfig
from echo_ska.training.checkpoint import list_checkpoints

STEPS = TrainingConfig(steps=3, learning_rate=1e-2, device="cpu")
RECIPE = ConversionRecipe(layers=[1], matching=STEPS, finetuning=dataclasses.replace(STEPS, steps=2))
DATA = TokenWindows(tokens(1, 400)[0], batch_size=2, length=12, seed=0)
MEASURE = ConversionMeasure(tokens(1, 200, seed=1)[0], VOCABULARY, 12, windows=4, bytes_per_token=2.0)


def test_a_measure_is_text_and_copying():
    model = host("llama").train()
    found = MEASURE(model)
    assert not model.training
    assert found["loss"] == held_out_loss(model, MEASURE.held_out, 12, windows=4)
    assert found["copied"] == {str(period): copying(model, VOCABULARY, period, windows=4) for period in (2, 6)}
    assert found["bits_per_byte"] == pytest.approx(found["loss"] / math.log(2) / 2)


def test_states_are_measured_in_order_and_the_original_stays(tmp_path):
    original = host("llama")
    before = copy.deepcopy(original.state_dict())
    student, replacement, figures = convert(original, DATA, RECIPE, MEASURE, directory=tmp_path)
    assert list(figures) == ["replaced", "matched", "finetuned"]
    assert len({state["loss"] for state in figures.values()}) == 3
    assert figures["finetuned"] == MEASURE(student)
    assert figures["matched"]["matching_loss"] > 0
    assert all(torch.equal(value, before[name]) for name, value in original.state_dict().items())
    assert cache_table(replacement)["1000"] == dict(
        zip(("before", "after"), replacement.cache_bytes(1000), strict=True)
    )
    again, _, same = convert(original, DATA, RECIPE, MEASURE, directory=tmp_path)  # from the last checkpoints
    assert same == figures
    student.save_pretrained(tmp_path / "model")
    assert MEASURE(load_converted(tmp_path / "model")) == figures["finetuned"] == MEASURE(again)


def test_what_starts_afresh_is_the_same_every_time():
    recipe = dataclasses.replace(RECIPE, init="fresh")
    torch.manual_seed(7)
    _, _, first = convert(host("gpt2"), DATA, recipe, MEASURE)
    torch.manual_seed(8)
    _, _, second = convert(host("gpt2"), DATA, recipe, MEASURE)
    assert first == second


class Watched:
    """A source that keeps the inputs that were read."""

    def __init__(self):
        self.read = []

    def batch(self, step, part=0, parts=1):
        batch = DATA.batch(step, part, parts)
        self.read.append(batch["input_ids"])
        return batch

    def describe(self):
        return DATA.describe()


def test_the_control_reads_the_batches_of_the_conversion():
    original, converted, controlled, distilled = host("llama"), Watched(), Watched(), Watched()
    student, _, _ = convert(original, converted, RECIPE, MEASURE)
    trained_on(original, controlled, RECIPE)
    distil(student, original, distilled, matching=RECIPE.matching, finetuning=RECIPE.finetuning)
    assert len(controlled.read) == 5
    assert len({tuple(batch.flatten().tolist()) for batch in controlled.read}) == 5
    assert torch.equal(torch.stack(converted.read), torch.stack(controlled.read))
    assert torch.equal(torch.stack(distilled.read), torch.stack(controlled.read))


def test_the_control_takes_the_steps_of_both_stages(tmp_path):
    original = host("llama")
    control = trained_on(original, DATA, RECIPE, directory=tmp_path)
    assert [path.name for path in list_checkpoints(tmp_path / "control")] == ["step-000005"]
    assert any(not torch.equal(a, b) for a, b in zip(control.parameters(), original.parameters(), strict=True))
    assert not control.training
