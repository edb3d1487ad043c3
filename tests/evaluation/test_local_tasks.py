"""Questions from files: the form that the harness has, from the forms that are published."""

from __future__ import annotations

import bz2
import json
from pathlib import Path

import pytest

from echo_ska.evaluation.local_tasks import (
    DEFINITIONS,
    LOCAL_TASKS,
    arc_rows,
    babi_rows,
    files_of,
    hellaswag_rows,
    piqa_rows,
    prepare,
)

HELLASWAG = """\
Roof: A man sits on a roof. he
3
is using wrap [now].
is off.
is holding a cube.
starts  pulling.
Health: How to sleep [title] Go to bed. Then rest.
0
 Well. [substeps] Done.
b.
c.
d.
"""
BABI = """\
1 John travelled to the hallway.
2 Mary journeyed to the bathroom.
3 Where is John? \thallway\t1
4 Daniel went back.
5 Where is Mary? \tbathroom\t2
1 Sandra left.
2 Where is Sandra? \tgarden\t1
"""


def test_hellaswag():
    first, second = hellaswag_rows(HELLASWAG)
    assert first == {
        "query": "Roof: A man sits on a roof. He",
        "choices": ["is using wrap .", "is off.", "is holding a cube.", "starts pulling."],
        "gold": 3,
    }
    assert second["query"] == "Health: How to sleep. Go to bed. Then rest."
    assert second["choices"][0] == "Well. Done."


def test_piqa():
    (row,) = piqa_rows('{"goal": "g", "sol1": "a", "sol2": "b "}\n', "1\n")
    assert row == {"goal": "g", "sol1": "a", "sol2": "b ", "label": 1}
    with pytest.raises(ValueError, match="1 questions and 2 labels"):
        list(piqa_rows('{"goal": "g", "sol1": "a", "sol2": "b "}\n', "1\n0\n"))


def test_arc():
    (row,) = arc_rows('{"query": "Question: Why?", "choices": ["a", "b"], "gold": 1}\n')
    assert row == {"question": "Why?", "choices": ["a", "b"], "gold": 1}


def test_babi():
    first, second, third = babi_rows(BABI)
    assert first == {
        "passage": "John travelled to the hallway.\nMary journeyed to the bathroom.\n",
        "question": "Where is John?",
        "answer": "hallway",
    }
    assert second["passage"].endswith("bathroom.\nDaniel went back.\n")
    assert third["passage"] == "Sandra left.\n"


def test_definitions_and_files(tmp_path):
    assert {path.stem for path in DEFINITIONS.glob("*.yaml")} == set(LOCAL_TASKS)
    data, work = tmp_path / "data", tmp_path / "work"
    (data / "inside").mkdir(parents=True)
    work.mkdir()
    (data / "inside" / "hellaswag_val_full.txt.bz2").write_bytes(bz2.compress(HELLASWAG.encode()))
    (definition,) = prepare(["hellaswag_local"], data, work)
    assert definition["task"] == "hellaswag_local"
    lines = Path(definition["dataset_kwargs"]["data_files"]["test"]).read_text().splitlines()
    assert [json.loads(line)["gold"] for line in lines] == [3, 0]


def test_of_several_files_of_one_name_the_one_in_the_form_is_read(tmp_path):
    for folder, text in {"a": "A novel.\n", "lm": "", "wikitext2": "\n = Title = \n\n It is told . \n"}.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "test.txt").write_text(text)
    assert files_of("wikitext_local", tmp_path) == [tmp_path / "wikitext2" / "test.txt"]
    (definition,) = prepare(["wikitext_local"], tmp_path, tmp_path)
    assert "It is told." in Path(definition["dataset_kwargs"]["data_files"]["test"]).read_text()
    (tmp_path / "wikitext2" / "test.txt").unlink()
    with pytest.raises(ValueError, match=r"^none of 2 files of that name in .* will do; .*a/test.txt is not what"):
        prepare(["wikitext_local"], tmp_path, tmp_path)


def test_files_that_belong_together_are_of_one_folder(tmp_path):
    for folder, label in {"a": "0\n1\n", "b": "1\n"}.items():  # a has labels of other questions
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "piqa_valid-labels.lst").write_text(label)
    (tmp_path / "b" / "piqa_valid.jsonl").write_text('{"goal": "g", "sol1": "a", "sol2": "b"}\n')
    assert {path.parent.name for path in files_of("piqa_local", tmp_path)} == {"b"}


@pytest.mark.parametrize(
    ("task", "file", "text", "words"),
    [
        ("hellaswag_local", "hellaswag_val_full.txt", "a\n", "six lines each"),
        ("hellaswag_local", "hellaswag_val_full.txt", "a\nb\nc\nd\ne\nf\n", "line 2 is 'b'"),
        ("hellaswag_local", "hellaswag_val_full.txt.bz2", "no archive", "is not what hellaswag_local reads"),
        ("hellaswag_local", "hellaswag_val_full.txt", "", "holds no question"),
        ("lambada_local", "lambada_test.jsonl", '{"txt": 1}\n', "line 1 lacks one of text"),
        ("lambada_local", "lambada_test.jsonl", "{\n", "is not what lambada_local reads"),
        ("babi_qa1_local", "qa1_single-supporting-fact_test.txt", "John\n", "line 1 does not begin with a number"),
        (
            "wikitext_local",
            "test.txt",
            " = = Section = = \n",
            "is not what wikitext_local reads: no line is the heading",
        ),
        ("arc_easy_local", "other.txt", "", "which is not in"),
    ],
)
def test_what_is_refused(tmp_path, task, file, text, words):
    (tmp_path / file).write_text(text)
    with pytest.raises(ValueError, match=words):
        prepare([task], tmp_path, tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        prepare([task], tmp_path / "absent", tmp_path)
