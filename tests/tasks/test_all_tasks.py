"""Laws of every registered task, over the rows of task_table.py."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from task_readers import kind
from task_table import TABLE, Row

from echo_ska.tasks import IGNORED, TASKS, Needle, RecallBatch, RecallMixture, RecallTask, answer_positions
from echo_ska.tasks.layout import AlphabetTask
from echo_ska.training import RecallData

TASKS_PAGE = Path(__file__).parents[2] / "docs" / "tasks.md"
EVERY = [
    pytest.param(row, task, id=f"{name}-{number}")
    for name, row in TABLE.items()
    for number, task in enumerate(row.settings)
]
every_setting = pytest.mark.parametrize(("row", "task"), EVERY)
every_task = pytest.mark.parametrize("name", TASKS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_registered_task_has_a_row_that_begins_with_its_defaults() -> None:
    assert set(TABLE) == set(TASKS)
    for name, task in TASKS.items():
        assert TABLE[name].settings[0] == task()


@every_setting
def test_labels_are_what_a_slow_reader_derives_from_the_tokens(row: Row, task: RecallTask) -> None:
    for seed in range(5):
        batch = task.sample(8, generator(seed))
        for tokens, labels in zip(batch.input_ids.tolist(), batch.labels.tolist(), strict=True):
            positions = [position for position, label in enumerate(labels) if label != IGNORED]
            assert positions
            assert labels == row.derive(task, tokens, positions)


@every_setting
def test_batches_have_the_stated_shape_and_tokens(row: Row, task: RecallTask) -> None:
    batch = task.sample(5, generator())
    for tensor in (batch.input_ids, batch.labels):
        assert tensor.shape == (5, task.length)
        assert tensor.dtype == torch.int64
        assert tensor.is_contiguous()
    assert 0 <= int(batch.input_ids.min()) <= int(batch.input_ids.max()) < task.vocab_size
    scored = batch.labels[batch.labels != IGNORED]
    assert 0 <= int(scored.min()) <= int(scored.max()) < task.vocab_size


@every_setting
def test_a_seed_decides_the_batch_and_advances(row: Row, task: RecallTask) -> None:
    source, twin = generator(3), generator(3)
    before = torch.get_rng_state()
    first, second = task.sample(4, source), task.sample(4, source)
    for batch in (first, second):
        again = task.sample(4, twin)
        assert torch.equal(batch.input_ids, again.input_ids)
        assert torch.equal(batch.labels, again.labels)
    assert not torch.equal(first.input_ids, second.input_ids)
    assert not torch.equal(first.input_ids, task.sample(4, generator(4)).input_ids)
    assert torch.equal(before, torch.get_rng_state())  # the global generator is left alone


@every_setting
def test_with_length_changes_the_length_alone(row: Row, task: RecallTask) -> None:
    longer = task.with_length(64 * task.length)
    assert longer.length == 64 * task.length
    assert longer.sample(1, generator()).input_ids.shape == (1, longer.length)
    assert longer.with_length(task.length) == task
    assert longer.chance == task.chance
    with pytest.raises(ValueError, match="length"):
        task.with_length(2)


@every_task
def test_a_million_tokens_are_drawn_and_answered(name: str) -> None:
    task = TASKS[name]().with_length(1_048_576)
    batch = task.sample(1, generator())
    _, positions = answer_positions(batch.labels)
    labels = batch.labels[0].tolist()
    assert labels == TABLE[name].derive(task, batch.input_ids[0].tolist(), positions.tolist())


@every_task
def test_settings_cannot_be_changed_afterwards(name: str) -> None:
    task: Any = TASKS[name]()
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.pairs = 1


@every_task
@pytest.mark.parametrize("batch_size", [0, -1, 2.0, True])
def test_a_bad_batch_size_is_refused(name: str, batch_size: int) -> None:
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1"):
        TASKS[name]().sample(batch_size, generator())


@every_task
def test_a_generator_of_another_device_is_refused(name: str) -> None:
    class Elsewhere:
        device = torch.device("cuda")

    with pytest.raises(ValueError, match=r"must be a CPU generator.* got one on cuda"):
        TASKS[name]().sample(1, Elsewhere())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [(name, settings, sentence) for name, row in TABLE.items() for settings, sentence in row.refused],
)
def test_settings_that_cannot_be_met_are_refused(name: str, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as error:
        TASKS[name](**settings)
    assert "\n" not in str(error.value)


@every_setting
def test_what_determines_the_batches_is_json(row: Row, task: RecallTask) -> None:
    described = RecallData(task, 4, seed=7).describe()
    assert json.loads(json.dumps(described)) == described
    assert described["task"] == type(task).__name__
    other = RecallData(task.with_length(2 * task.length), 4, seed=7).describe()
    assert other != described


def guessed_without_memory(known: RecallBatch, asked: RecallBatch, window: int) -> tuple[float, int]:
    """How often counts of (last `window` tokens, answer) in `known` guess right in `asked`, and of how many.

    The likeliest answer after these very tokens; where they never came, after fewer of them.
    """

    def contexts(batch: RecallBatch) -> tuple[torch.Tensor, np.ndarray]:
        rows, positions = answer_positions(batch.labels)
        before = [batch.input_ids[rows, (positions - 1 - back).clamp(min=0)] for back in range(window)]
        return torch.stack(before, dim=1), batch.labels[rows, positions].numpy()

    (known_tokens, known_answers), (asked_tokens, asked_answers) = contexts(known), contexts(asked)
    guesses = np.full(len(asked_answers), -1)
    for used in range(window, -1, -1):
        pairs = np.column_stack([known_tokens[:, :used].numpy(), known_answers])
        seen, counts = np.unique(pairs, axis=0, return_counts=True)
        seen = seen[np.argsort(counts, kind="stable")]
        best = {tuple(context): answer for *context, answer in seen.tolist()}  # the most frequent comes last
        found = [best.get(tuple(context), -1) for context in asked_tokens[:, :used].tolist()]
        guesses = np.where(guesses < 0, found, guesses)
    return float((guesses == asked_answers).mean()), len(guesses)


def known_and_asked(task: RecallTask) -> tuple[RecallBatch, RecallBatch]:
    source = generator()
    answers = int((task.sample(1, generator()).labels != IGNORED).sum())
    return task.sample(16_000 // answers, source), task.sample(8_000 // answers, source)


@every_setting
def test_a_guesser_without_memory_scores_at_chance(row: Row, task: RecallTask) -> None:
    """Fitted on the last 1, 2 and 3 tokens: never above chance by five standard errors, and the best of them at it."""
    known, asked = known_and_asked(task)
    scores = []
    for window in row.windows:
        score, number = guessed_without_memory(known, asked, window)
        scores.append(score)
    margin = 5 * (task.chance * (1 - task.chance) / number) ** 0.5
    assert task.chance - margin < max(scores) < task.chance + margin, scores


def test_the_guesser_finds_an_answer_that_leaks() -> None:
    """So that the law above can fail: answers that follow from the key, or from a hint two tokens before it."""

    def leaking(batch: RecallBatch, back: int) -> RecallBatch:
        rows, positions = answer_positions(batch.labels)
        labels = batch.labels.clone()
        labels[rows, positions] = 64 + batch.input_ids[rows, positions - 1 - back] % 32
        return RecallBatch(batch.input_ids, labels)

    known, asked = known_and_asked(Needle(needles=1))
    for back in (0, 2):
        found = [guessed_without_memory(leaking(known, back), leaking(asked, back), window)[0] for window in (1, 2, 3)]
        assert found[back] > 0.3 > 10 * Needle().chance * 0.9


def drawings(name: str) -> list[dict[str, list[str]]]:
    """Rows by name of each drawing in the docstring of the task's module."""
    page = sys.modules[TASKS[name].__module__].__doc__ or ""
    blocks = re.findall(r"(?:^    \S.*\n)+", page, re.MULTILINE)
    found: list[dict[str, list[str]]] = []
    for block in blocks:
        rows = {line.split()[0]: line.split()[1:] for line in block.splitlines()}
        if rows.get("position", [""])[0] == "0":
            found.append(rows)
        elif "position" in rows:  # it goes on where the block before ended
            found[-1] = {name: found[-1][name] + cells for name, cells in rows.items()}
    return found


@every_task
def test_the_docstring_draws_true_sequences(name: str) -> None:
    row = TABLE[name]
    for task, drawn in zip(row.drawn, drawings(name), strict=True):
        assert drawn["position"] == [str(position) for position in range(task.length)]
        tokens, labels = ([int(cell) for cell in drawn[line]] for line in ("input", "label"))
        positions = [position for position, label in enumerate(labels) if label != IGNORED]
        assert positions
        assert labels == row.derive(task, tokens, positions)
        assert len(drawn["role"]) == task.length
        if isinstance(task, AlphabetTask):
            for role, token in zip(drawn["role"], tokens, strict=True):
                assert kind(task, token) in ROLES[role], (role, token)


@every_setting
def test_roles_tell_what_is_stored_from_noise(row: Row, task: RecallTask) -> None:
    batch = task.sample(4, generator())
    for tokens, labels, roles in zip(batch.input_ids.tolist(), batch.labels.tolist(), task.roles(batch), strict=True):
        assert len(roles) == task.length
        asked = [place - 1 for place, label in enumerate(labels) if label != IGNORED]
        assert [place for place, role in enumerate(roles) if role == "ask"] == asked
        alike = task.parts[0][0] if isinstance(task, RecallMixture) else task  # a mixture is of one alphabet
        if isinstance(alike, AlphabetTask):
            words = {"key": "key", "value": "val", "filler": ".", "ask": "end"}
            told = [words.get(found, found) for found in (kind(alike, token) for token in tokens)]
            assert [role for role in roles if role != "ask"] == [
                word for place, word in enumerate(told) if place not in asked
            ]
        assert len({*roles} - {"ask", "."}) >= 1


@pytest.mark.parametrize("name", ["mqar", "mqar-grid", "system-prompt", "needle", "common-word", "orbit"])
def test_roles_are_those_of_the_drawing(name: str) -> None:
    """Where the drawing has no words of its own for keys and values."""
    for task, drawn in zip(TABLE[name].drawn, drawings(name), strict=True):
        tokens, labels = (torch.tensor([[int(cell) for cell in drawn[line]]]) for line in ("input", "label"))
        assert task.roles(RecallBatch(tokens, labels)) == [drawn["role"]]


ROLES = {
    ".": {"filler"},
    "key": {"key"},
    "agt": {"key"},
    "tool": {"key"},
    "2nd": {"key"},
    "val": {"value"},
    "res": {"value"},
    "1st": {"value"},
    "to": {"key", "value"},
    "ask": {"key", "ask"},
    "sys": {"sys"},
    "usr": {"usr"},
    "tr": {"tr"},
    "flw": {"flw"},
    "old": {"value"},
    "from": {"key", "value"},
    "rsc": {"key"},
    "#1": {"value"},
    "#2": {"value"},
    "amt": {"value"},
    "word": {"key"},
    "rep": {"rep"},
    "add": {"add"},
}


@every_task
def test_the_page_of_tasks_draws_what_the_docstring_draws(name: str) -> None:
    sections = dict(re.findall(r"^## `(.*?)`.*?\n(.*?)(?=^## |\Z)", TASKS_PAGE.read_text("utf-8"), re.DOTALL | re.M))
    docstring = sys.modules[TASKS[name].__module__].__doc__ or ""
    for block in re.findall(r"(?:^    \S.*\n)+", docstring, re.MULTILINE):
        assert block in sections[name], f"docs/tasks.md does not have the drawing of {name} as it is"
    for field in dataclasses.fields(TASKS[name]):  # type: ignore[arg-type]
        assert f"`{field.name}`" in sections[name] or f"`{field.name}`" in sections["alphabet"], field.name
