"""Needles, read back from their sentences."""

from __future__ import annotations

import re
from random import Random

import pytest

from echo_ska.evaluation.hidden_text import Prose, hide
from echo_ska.evaluation.needle import NEEDLES, WORDS, NeedleTask, needle_tasks
from echo_ska.training import book_path

TASKS = [*NEEDLES.values(), NeedleTask("many", words=3, numbers=2, candidates=11)]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_the_answers_are_the_numbers_told_of_the_word(task):
    for number in range(20):
        story = task.story(number, 0)
        told: dict[str, set[str]] = {}
        for fact in story.facts:
            word, value = re.fullmatch(r"The special magic number for (\w+) is ([1-9]\d{6})\.", fact).groups()
            told.setdefault(word, set()).add(value)
        assert len(told) == task.words
        assert all(len(values) == task.numbers for values in told.values())
        asked = re.search(r"for (\w+) mentioned", story.question)[1]
        assert story.question.endswith(f"Answer: The special magic number for {asked} is")
        assert set(story.answers) == told[asked]
        assert list(story.candidates) == sorted(set(story.candidates))
        assert len(story.candidates) == task.candidates
        assert set.union(*told.values()) <= set(story.candidates)
        assert task.chance == len(story.answers) / len(story.candidates)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_places_of_the_answer_say_nothing(task):
    """Who always takes the same places of the candidates, or the number told first, is right by chance."""
    stories = [task.story(number, 1) for number in range(2000)]
    margin = 5 * (task.chance * (1 - task.chance) / 2000) ** 0.5
    for place in (0, task.candidates - 1):
        share = sum(story.candidates[place] in story.answers for story in stories) / 2000
        assert abs(share - task.chance) < margin
    first = sum(any(f" {answer}." in story.facts[0] for answer in story.answers) for story in stories) / 2000
    assert abs(first - 1 / task.words) <= 5 * (1 / task.words * (1 - 1 / task.words) / 2000) ** 0.5


def test_a_story_follows_from_its_number_and_seed():
    task = NEEDLES["multi-key"]
    assert task.story(3, 0) == task.story(3, 0)
    assert len({task.story(number, seed) for number in range(4) for seed in range(4)}) == 16


def test_needles_stand_in_the_text():
    story = NEEDLES["multi-value"].story(0, 0)
    text = hide(story, Prose([book_path("unseen")]), 5000, len, Random(0)).text
    assert [text.count(fact) for fact in story.facts] == [1] * 16
    assert sorted(story.facts, key=text.index) == list(story.facts)


def test_what_cannot_be_met_is_refused():
    assert len(set(WORDS)) == len(WORDS)
    for settings in ({"words": 0}, {"words": 999}, {"numbers": 0}, {"words": 4, "numbers": 3}):
        with pytest.raises(
            ValueError, match=r"words must be from 1 to \d+ and words times numbers from 1 to candidates"
        ):
            NeedleTask("bad", **settings)
    with pytest.raises(ValueError, match="needle has no variant 'double': choose from single, multi-key, multi-value"):
        needle_tasks(["double"])
    assert needle_tasks() == list(NEEDLES.values())
