"""The tasks that read local files are lm-evaluation-harness's own: the same questions, answers, metrics and scores.

`make check-harness` installs the harness and runs this.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
from random import Random
from typing import Any, NamedTuple

import pytest

from echo_ska.evaluation.local_tasks import DEFINITIONS, LOCAL_TASKS, prepare

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-evaluation-harness is not installed (the extra `eval`)"
)
HEADER = re.compile(r"# lm-evaluation-harness's `(?P<task>\w+)` \(version (?P<version>[\d.]+)\)")


class Questions(NamedTuple):
    """The same questions twice: as the files that are published, and as the rows of the data that the harness loads."""

    files: tuple[str, ...]
    rows: list[dict[str, Any]]


HELLASWAG = """\
Roof: A man sits on a roof. he then
1
is using wrap [now].
is off.
is holding a cube.
starts  pulling.
Health: How to sleep [title] Go to bed. [step] Then rest.
0
 Well. [substeps] Done.
b.
c "said".
it's d.
"""
HELLASWAG_ROWS = [
    {
        "activity_label": "Roof",
        "ctx_a": "A man sits on a roof.",
        "ctx_b": "he then",
        "endings": ["is using wrap [now].", "is off.", "is holding a cube.", "starts  pulling."],
        "label": "1",
    },
    {
        "activity_label": "Health",
        "ctx_a": "How to sleep [title] Go to bed. [step] Then rest.",
        "ctx_b": "",
        "endings": [" Well. [substeps] Done.", "b.", 'c "said".', "it's d."],
        "label": "0",
    },
]
PIQA_ROWS = [
    {"goal": "To stay dry", "sol1": "use a roof", "sol2": 'stand in the "rain" ', "label": 0},
    {"goal": "To get wet?", "sol1": "don't", "sol2": "do", "label": 1},
]
PIQA = "".join(json.dumps({**row, "label": None}) + "\n" for row in PIQA_ROWS)
ARC = """\
{"query": "Question: What is hot?", "choices": ["the sun", "ice, \\"dry\\"", "it's snow", "a cold stone"], "gold": 2}
{"query": "Question: What is wet?", "choices": ["sand", "rain", "dust"], "gold": 1}
"""
ARC_ROWS = [
    {
        "question": "What is hot?",
        "choices": {"text": ["the sun", 'ice, "dry"', "it's snow", "a cold stone"], "label": ["A", "B", "C", "D"]},
        "answerKey": "C",
    },
    {
        "question": "What is wet?",
        "choices": {"text": ["sand", "rain", "dust"], "label": ["1", "2", "3"]},
        "answerKey": "2",
    },
]
LAMBADA_ROWS = [{"text": "The cat sat on the mat"}, {"text": "She said: that it's late"}]
BABI = """\
1 John travelled to the hallway.
2 Mary journeyed to the bathroom.
3 Where is John? \thallway\t1
4 Daniel went back.
5 Where is Mary? \tbathroom\t2
"""
MOVED = "John travelled to the hallway.\nMary journeyed to the bathroom.\n"
BABI_ROWS = [
    {"passage": MOVED, "question": "Where is John?", "answer": "hallway", "task": 1},
    {"passage": MOVED + "Daniel went back.\n", "question": "Where is Mary?", "answer": "bathroom", "task": 1},
]
ARTICLES = [
    ' = Robert <unk> = \n \n He said " no " ( twice ) ; 1 @,@ 000 saw it . \n \n',
    " = Du Fu = \n \n Du Fu was a well @-@ known poet : the poets ' own . \n",
]
QUESTIONS = {
    "hellaswag_local": Questions((HELLASWAG,), HELLASWAG_ROWS),
    "piqa_local": Questions((PIQA, "0\n1\n"), PIQA_ROWS),
    "arc_easy_local": Questions((ARC,), ARC_ROWS),
    "arc_challenge_local": Questions((ARC,), ARC_ROWS),
    "lambada_local": Questions(("".join(json.dumps(row) + "\n" for row in LAMBADA_ROWS),), LAMBADA_ROWS),
    "babi_qa1_local": Questions((BABI,), BABI_ROWS),
    "wikitext_local": Questions(("".join(ARTICLES),), [{"page": page} for page in ARTICLES]),
}
# Settings that may differ: names and places of the data, what is compared by what it comes to, and what repeats it.
PLACES = {
    *("task", "tag", "metadata", "dataset_path", "dataset_name", "dataset_kwargs", "process_docs"),
    *("training_split", "validation_split", "test_split", "should_decontaminate", "doc_to_decontamination_query"),
}
COMPARED = {
    *("doc_to_text", "doc_to_choice", "doc_to_target", "process_results", "metric_list", "generation_kwargs"),
    "fewshot_config",
}


@pytest.fixture(scope="module", name="manager")
def _manager():
    from lm_eval.tasks import TaskManager

    return TaskManager()


@pytest.fixture(name="pair", params=LOCAL_TASKS)
def _pair(request, manager, tmp_path, monkeypatch):
    """A local task and the harness's own, each with the same questions."""
    import datasets

    questions = QUESTIONS[request.param]
    for name, text in zip(LOCAL_TASKS[request.param].files, questions.files, strict=True):
        (tmp_path / name).write_text(text)
    (ours,) = manager.load(prepare([request.param], tmp_path, tmp_path))["tasks"].values()
    own = tmp_path / "own.jsonl"
    own.write_text("".join(json.dumps(row) + "\n" for row in questions.rows))
    rows = datasets.load_dataset("json", data_files=str(own), cache_dir=str(tmp_path / "cache"), split="train")
    monkeypatch.setattr(
        datasets, "load_dataset", lambda path, **_: dict.fromkeys(("train", "valid", "validation", "test"), rows)
    )
    header = HEADER.match((DEFINITIONS / f"{request.param}.yaml").read_text())
    (theirs,) = manager.load(header["task"])["tasks"].values()
    assert header["version"] == str(theirs.VERSION)
    return ours, theirs


def test_the_settings_are_the_harness_own(pair):
    ours, theirs = pair
    assert ours.VERSION == theirs.VERSION
    for field in dataclasses.fields(theirs.config):
        if field.name not in PLACES | COMPARED:
            assert getattr(ours.config, field.name) == getattr(theirs.config, field.name), field.name
    assert ours.aggregation() == theirs.aggregation()
    assert ours.higher_is_better() == theirs.higher_is_better()
    assert _metrics(ours) == _metrics(theirs)
    limit = {"max_gen_toks": 32} if ours.OUTPUT_TYPE == "generate_until" else {}  # the one thing that is ours
    assert (ours.config.generation_kwargs or {}) == (theirs.config.generation_kwargs or {}) | limit


def test_questions_choices_and_targets_are_the_harness_own(pair):
    ours, theirs = pair
    documents = list(zip(ours.eval_docs, theirs.eval_docs, strict=True))
    assert len(documents) == 2
    for document, own in documents:
        assert ours.doc_to_text(document) == theirs.doc_to_text(own)
        assert ours.doc_to_target(document) == theirs.doc_to_target(own)
        if ours.OUTPUT_TYPE == "multiple_choice":
            assert ours.doc_to_choice(document) == theirs.doc_to_choice(own)


def test_what_the_model_is_asked_and_the_scores_are_the_harness_own(pair):
    random = Random(0)
    for task in pair:
        task.build_all_requests()
    ours, theirs = pair
    asked, own = ([(request.request_type, *_said(request)) for request in task.instances] for task in pair)
    assert asked == own
    for document, own_document in zip(ours.eval_docs, theirs.eval_docs, strict=True):
        for _ in range(20):
            results = _results(ours, document, random)
            assert ours.process_results(document, results) == theirs.process_results(own_document, results)


def _metrics(task):
    """Names and settings of the metrics, without what `aggregation` and `higher_is_better` give."""
    said = ("aggregation", "higher_is_better")
    return [{key: value for key, value in metric.items() if key not in said} for metric in task.config.metric_list]


def _said(request):
    """What a request says to a model, without the settings of generation."""
    return [part for part in request.args if isinstance(part, str)]


def _results(task, document, random):
    """What a model might have answered."""
    kind = task.OUTPUT_TYPE
    if kind == "multiple_choice":
        return [(-random.uniform(0, 10), False) for _ in task.doc_to_choice(document)]
    if kind == "loglikelihood":
        return [(-random.uniform(0, 10), random.random() < 0.5)]
    if kind == "loglikelihood_rolling":
        return [-random.uniform(0, 10)]
    return [random.choice([task.doc_to_target(document), document["answer"], "the hall", ""])]
