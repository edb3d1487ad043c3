"""Facts hidden in prose: in order, each once, among prose that runs on, and as long as was asked for."""

from __future__ import annotations

from random import Random

import pytest

from echo_ska.evaluation.hidden_text import Prose, Story, TextQuestion, hide, require_names, sentences_of, shuffled

TEXT = """\ufeffCHAPTER I

It was late. "Who is there?" he
cried.  Nobody answered!

THE END
"""
FACTS = ("Mary went to the hall.", "John took the milk.", "Mary went to the hall.")
STORY = Story(FACTS, "Question: Where is Mary?\nAnswer:", ("hall",), ("garden", "hall"), frozenset({"Mary", "John"}))


@pytest.fixture(name="prose")
def _prose(tmp_path):
    sentences = [f"Sentence {number} is {'very ' * (number % 7)}dull." for number in range(300)]
    sentences[100:110] = [f"Mary sighed {number} times." for number in range(10)]
    (tmp_path / "novel.txt").write_text(" ".join(sentences) + "\n\nwithout an end\n")
    return Prose([tmp_path])


def test_sentences_are_those_that_end():
    assert sentences_of(TEXT) == ["It was late.", '"Who is there?"', "he cried.", "Nobody answered!"]


@pytest.mark.parametrize("tokens", [250, 251, 1000, 5000, 40_000])
def test_facts_stand_in_order_and_once_in_a_text_of_the_length(prose, tokens):
    longest = max(map(len, prose.sentences)) + 1
    for seed in range(20):
        question = hide(STORY, prose, tokens, len, Random(seed))
        written = len(question.prompt) + max(len(question.written(answer)) for answer in question.candidates)
        assert tokens - longest <= written <= tokens
        before, *between = question.text.split(FACTS[0])
        assert len(between) == 2  # the fact that stands twice in the story
        assert before.count(FACTS[1]) == between[1].count(FACTS[1]) == 0
        assert between[0].count(FACTS[1]) == 1
        assert "sighed" not in question.text  # prose about a person of the story
        assert question.question == "\n\nQuestion: Where is Mary?\nAnswer:"
        background = [part for part in sentences_of(question.text) if part not in FACTS]
        numbers = [int(part.split()[1]) for part in background]
        run = [number % 300 for number in range(numbers[0], numbers[0] + 20 * 300)]
        assert numbers == [number for number in run if not 100 <= number < 110][: len(numbers)]  # it runs on


def test_every_place_is_as_likely(prose):
    """A lone fact stands, over many seeds, as often in each fifth of the text."""
    lone = Story(FACTS[:1], STORY.question, STORY.answers, STORY.candidates, STORY.names)
    fifths = [0] * 5
    for seed in range(1000):
        text = hide(lone, prose, 4000, len, Random(seed)).text
        fifths[5 * text.index(FACTS[0]) // len(text)] += 1
    assert all(abs(count - 200) < 5 * (1000 * 0.2 * 0.8) ** 0.5 for count in fifths)


def test_without_background_there_are_the_facts_alone(prose):
    assert hide(STORY, prose, 0, len, Random(0)).text == " ".join(FACTS)


def test_what_does_not_fit_or_is_no_prose_is_refused(prose, tmp_path):
    with pytest.raises(ValueError, match=f"A story of {STORY.tokens(len)} tokens does not fit into 99"):
        hide(STORY, prose, 99, len, Random(0))
    (tmp_path / "headings.txt").write_text("CHAPTER I\n")
    with pytest.raises(ValueError, match=r"headings\.txt holds no sentence"):
        Prose([tmp_path / "headings.txt"])
    (tmp_path / "mary.txt").write_text("Mary sat. Mary stood.")
    with pytest.raises(ValueError, match=r"^Every sentence of the background holds one of John, Mary\.$"):
        hide(STORY, Prose([tmp_path / "mary.txt"]), 999, len, Random(0))


def test_an_answer_is_scored_with_its_end():
    assert TextQuestion.written("hall") == " hall."


def test_a_random_order_asks_all_before_any_again():
    for seed in range(5):
        asked = [shuffled(7, number, seed) for number in range(14)]
        assert sorted(asked[:7]) == sorted(asked[7:]) == list(range(7))
    assert [shuffled(50, number, 0) for number in range(50)] != [shuffled(50, number, 1) for number in range(50)]


def test_names_are_known_or_refused():
    assert require_names(["b", "a", "b"], ["a", "b", "c"], "it") == ["b", "a"]
    assert require_names([], ["a", "b"], "it") == ["a", "b"]
    with pytest.raises(ValueError, match="it has no variant 'd': choose from a, b"):
        require_names(["d"], ["a", "b"], "it")
