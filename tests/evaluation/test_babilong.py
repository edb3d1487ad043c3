"""bAbI's files, read again line by line, and what is asked about them."""

from __future__ import annotations

import re
from collections import Counter
from random import Random

import pytest

from echo_ska.evaluation.babilong import VARIANTS, load_babi, sample_folder
from echo_ska.evaluation.hidden_text import Prose, hide
from echo_ska.evaluation.local_tasks import babi_rows
from echo_ska.training import book_path

FILE = """1 Mary went to the hall.
2 John took the milk there.
3 Where is Mary? \thall\t1
4 Mary went to the garden.
5 Where is Mary? \tgarden\t4
1 The hall is north of the garden.
2 What is north of the garden?\thall\t1
"""


def questions(text):
    """(facts, question, answer) of a bAbI file."""
    found, facts = [], []
    for line in text.splitlines():
        number, rest = re.fullmatch(r"(\d+) (.*)", line).groups()
        facts = [] if number == "1" else facts
        if "\t" in rest:
            asked, answer, _ = rest.split("\t")
            found.append((tuple(facts), asked.strip(), answer))
        else:
            facts = [*facts, rest]
    return found


def right_guesses(rows):
    """Right answers of who says the commonest answer, and of who says the commonest that the question does not name."""
    counts = Counter(answer for *_, answer in rows)

    def guess(asked):
        return max((answer for answer in counts if answer not in re.findall(r"\w+", asked)), key=counts.get)

    return max(counts.values()), sum(guess(asked) == answer for _, asked, answer in rows)


@pytest.fixture(scope="module", name="prose")
def _prose():
    return Prose([book_path("unseen")])


def test_a_file_becomes_its_questions(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "qa1_short_test.txt").write_text(FILE)
    (tmp_path / "qa1_short_train.txt").write_text("1 Bill ran.\n2 Who ran?\tBill\t1\n")  # the test is asked
    [task] = load_babi(tmp_path)
    assert task.questions == 3
    assert task.chance == 2 / 3
    stories = [task.story(number, 0) for number in range(3)]
    assert {(s.facts, s.question, s.answers) for s in stories} == {
        (facts, f"Question: {asked}\nAnswer:", (answer,)) for facts, asked, answer in questions(FILE)
    }
    assert all(s.candidates == ("garden", "hall") for s in stories)
    assert {s.names for s in stories} == {frozenset({"Mary", "John"}), frozenset()}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_shipped_sample_is_asked_rightly_at_every_length(name, prose):
    [path] = sample_folder().glob(f"{name}_*.txt")
    rows = questions(path.read_text())
    answers = {row: set() for row in ((facts, asked) for facts, asked, _ in rows)}
    for facts, asked, answer in rows:
        answers[facts, asked].add(answer)
    [task] = load_babi(variants=[name])
    assert task.questions == len(rows) >= 20
    assert task.chance == max(right_guesses(rows)) / len(rows)
    for number in range(task.questions):
        story = task.story(number, 3)
        asked = re.fullmatch(r"Question: (.*)\nAnswer:", story.question)[1]
        assert {*story.answers} <= answers[story.facts, asked]
        assert set(story.candidates) == {answer for *_, answer in rows}
        if number < 4:
            text = hide(story, prose, 20_000, len, Random(number)).text
            at = 0
            for fact in story.facts:  # in their order
                at = text.index(fact, at) + len(fact)
            for fact, times in Counter(story.facts).items():
                assert text.count(fact) == times
            rest = text
            for fact in story.facts:
                rest = rest.replace(fact, "", 1)
            assert not story.names & set(re.findall(r"\w+", rest))


def test_a_question_that_rules_answers_out_raises_chance():
    chances = {task.name: task.chance for task in load_babi()}
    assert chances["qa3"] == 12 / 25  # the commonest answer alone: 10
    assert chances["qa5"] == 6 / 20  # 4
    assert chances["qa4"] == 13 / 39  # 13: who leaves named rooms out is right 13 times too
    assert chances["qa1"] == 12 / 45  # no answer is ever named


def test_a_rule_that_would_be_wrong_more_often_is_not_followed(tmp_path):
    asked = [("Is it red or blue?", "red"), ("Is it red or blue?", "red"), ("Is it blue?", "green")]
    (tmp_path / "qa1_made_test.txt").write_text("".join(f"1 {question}\t{answer}\t\n" for question, answer in asked))
    [task] = load_babi(tmp_path)
    assert task.chance == 2 / 3


def test_the_sample_is_small_and_says_where_it_is_from():
    folder = sample_folder()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 60_000
    page = (folder / "README.md").read_text()
    assert "CC BY 3.0" in page
    assert all(path.name in page for path in folder.glob("*.txt"))


def test_stories_are_limited_to_those_that_fit():
    [task] = load_babi(variants=["qa3"])
    sizes = sorted(task.story(number, 0).tokens(len) for number in range(task.questions))
    limited = task.limited_to(sizes[10], len)
    assert sorted(limited.story(number, 0).tokens(len) for number in range(limited.questions)) == sizes[:11]
    assert (limited.questions, task.questions) == (11, len(sizes))
    assert limited.story(0, 0).candidates == task.story(0, 0).candidates
    with pytest.raises(ValueError, match=f"shortest story of qa3 takes {sizes[0]} tokens, which do not fit into 50"):
        task.limited_to(50, len)


def test_chance_is_that_of_the_file_however_few_stories_fit():
    for task in load_babi():
        sizes = sorted(task.story(number, 0).tokens(len) for number in range(task.questions))
        assert task.limited_to(sizes[0], len).chance == task.chance


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("qa1_x_test.txt", "Mary went.\n", r"qa1_x_test\.txt is not one of bAbI's files: line 1 does not begin"),
        ("qa1_x_test.txt", "1 Mary went.\n", "there is no question for qa1"),
        ("qa2_x_test.txt", FILE, "has no file qa1_..._test.txt"),
    ],
)
def test_files_that_are_not_babis_are_refused(tmp_path, name, text, sentence):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=sentence):
        load_babi(tmp_path, ["qa1"])


def test_folders_without_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds none of bAbI's files"):
        load_babi(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        load_babi(tmp_path / "absent")
    with pytest.raises(ValueError, match="babilong has no variant 'qa11'"):
        load_babi(None, ["qa11"])


def test_line_feeds_alone_end_a_line():
    text = "1 Mary\u2028went\x0chome.\n2 Where is Mary?\thome\t1\n"
    assert list(babi_rows(text)) == [
        {"passage": "Mary\u2028went\x0chome.\n", "question": "Where is Mary?", "answer": "home"}
    ]
