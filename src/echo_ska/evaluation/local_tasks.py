"""Benchmark questions from local files, brought into the form in which lm-evaluation-harness asks them.

The harness downloads its data. The tasks here, `lm_eval_tasks/*.yaml`, ask the same questions in the same form from
files that are already there: this module finds the files in a folder and writes them as the JSON lines that the tasks
read.
"""

from __future__ import annotations

import bz2
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from echo_ska.evaluation.wikitext import perplexity_parts, wikitext_rows

DEFINITIONS = Path(__file__).parent / "lm_eval_tasks"
Row = dict[str, Any]

# A context of HellaSwag's first half ends in the beginning of a sentence, which the harness writes with a capital.
BEGUN_SENTENCE = re.compile(r"(.*[.!?][\"')]*\s+)([^.!?]*[^.!?\s])", re.DOTALL)


@dataclass(frozen=True)
class LocalTask:
    """What a task is made from.

    Attributes:
        files: their names; a file may also be compressed, with .bz2 behind its name.
        rows: the texts of the files to the rows that the task's definition reads.
        process_results: the harness's function of that name, where its metrics need one of the task's own.
    """

    files: tuple[str, ...]
    rows: Callable[..., Iterator[Row]]
    process_results: Callable[[Row, list[float]], dict[str, Any]] | None = None


def hellaswag_rows(text: str) -> Iterator[Row]:
    """HellaSwag as text, six lines a question: context, number of the right ending, four endings.

    The harness's clean-up is done: what stands in brackets is removed, and the sentence that the ending goes on with
    gets a capital. What the text form has lost, which full stops stood for the titles of an article, stays lost.
    """
    lines = _lines(text)
    if len(lines) % 6:
        raise ValueError(f"questions have six lines each, but there are {len(lines)} lines")
    for start in range(0, len(lines), 6):
        context, gold, *endings = lines[start : start + 6]
        if gold not in ("0", "1", "2", "3"):
            raise ValueError(f"line {start + 2} is {gold!r}, not the number of an ending, 0 to 3")
        begun = BEGUN_SENTENCE.fullmatch(context)
        if begun is not None:
            context = begun[1] + begun[2].capitalize()
        yield {"query": _without_brackets(context), "choices": [*map(_without_brackets, endings)], "gold": int(gold)}


def _without_brackets(text: str) -> str:
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def piqa_rows(questions: str, labels: str) -> Iterator[Row]:
    """PIQA as published: JSON lines with goal, sol1 and sol2, and a list with the right one of each, 0 or 1."""
    rows, right = list(_json_rows(questions, ("goal", "sol1", "sol2"))), labels.split()
    if len(rows) != len(right):
        raise ValueError(f"there are {len(rows)} questions and {len(right)} labels")
    for row, label in zip(rows, right, strict=True):
        yield {"goal": row["goal"], "sol1": row["sol1"], "sol2": row["sol2"], "label": int(label)}


def arc_rows(text: str) -> Iterator[Row]:
    """ARC as JSON lines with query, choices and gold; a "Question: " before the query is the task's to write."""
    for row in _json_rows(text, ("query", "choices", "gold")):
        question = row["query"].removeprefix("Question:").strip()
        yield {"question": question, "choices": row["choices"], "gold": row["gold"]}


def lambada_rows(text: str) -> Iterator[Row]:
    """LAMBADA as JSON lines with text, whose last word is to be guessed: the harness's own form."""
    for row in _json_rows(text, ("text",)):
        yield {"text": row["text"]}


def babi_rows(text: str) -> Iterator[Row]:
    """bAbI as published: numbered lines, a new story at number 1, questions with their answer behind a tab."""
    story: list[str] = []
    for number, line in enumerate(_lines(text), start=1):
        count, _, said = line.partition(" ")
        if not count.isdigit():
            raise ValueError(f"line {number} does not begin with a number")
        if count == "1":
            story = []
        question, *answer = said.split("\t")
        if answer:
            passage = "".join(f"{sentence}\n" for sentence in story)
            yield {"passage": passage, "question": question.strip(), "answer": answer[0]}
        else:
            story.append(said.strip())


def _lines(text: str) -> list[str]:
    """The lines of a file, which line feeds alone end: `str.splitlines` also cuts at characters of a text (U+2028)."""
    return text.removesuffix("\n").split("\n") if text else []


LOCAL_TASKS = {
    "hellaswag_local": LocalTask(("hellaswag_val_full.txt",), hellaswag_rows),
    "piqa_local": LocalTask(("piqa_valid.jsonl", "piqa_valid-labels.lst"), piqa_rows),
    "arc_easy_local": LocalTask(("arc_easy_test.jsonl",), arc_rows),
    "arc_challenge_local": LocalTask(("arc_challenge_test.jsonl",), arc_rows),
    "lambada_local": LocalTask(("lambada_test.jsonl",), lambada_rows),
    "babi_qa1_local": LocalTask(("qa1_single-supporting-fact_test.txt",), babi_rows),
    "wikitext_local": LocalTask(("test.txt",), wikitext_rows, perplexity_parts),
}


def prepare(names: Sequence[str], data: Path, work: Path) -> list[dict[str, Any]]:
    """Definitions of local tasks that `lm_eval.simple_evaluate` takes, with their rows written to `work`.

    Args:
        names: of `LOCAL_TASKS`.
        data: the folder that holds their files, subfolders included.
        work: where the rows are written, and where the harness's reader keeps what it makes of them; to be there as
            long as the definitions are used.

    Raises:
        ValueError: a file is missing or not in its form; says which and where.
    """
    return [_prepared(name, data, work) for name in names]


def files_of(name: str, data: Path) -> list[Path]:
    """The files that a task's questions are read from: of several of one name, the first in the task's form.

    Args:
        name: of `LOCAL_TASKS`.
        data: the folder that holds them, subfolders included.

    Raises:
        ValueError: a file is missing, or none of its name is in its form; says which and where.
    """
    return _read(name, data)[0]


def _prepared(name: str, data: Path, work: Path) -> dict[str, Any]:
    task, path = LOCAL_TASKS[name], work / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in _read(name, data)[1]), encoding="utf-8")
    definition: dict[str, Any] = yaml.safe_load((DEFINITIONS / f"{name}.yaml").read_text(encoding="utf-8"))
    if task.process_results is not None:
        definition["process_results"] = task.process_results
    definition["dataset_kwargs"] = {"data_files": {"test": str(path)}, "cache_dir": str(work / "cache")}
    return definition


def chance_of(definition: dict[str, Any], questions: int) -> float | None:
    """The expected share of right answers of who takes any choice, over the first questions of a prepared task.

    Args:
        definition: as `prepare` gave it.
        questions: at most so many.

    Returns:
        In [0, 1]; 0 where a word is to be guessed, None where nothing is.
    """
    lines = Path(definition["dataset_kwargs"]["data_files"]["test"]).read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines[:questions] if line]
    if definition["output_type"] == "loglikelihood_rolling":
        return None
    if definition["output_type"] != "multiple_choice":
        return 0.0
    return fmean(1 / (2 if "sol1" in row else len(row["choices"])) for row in rows)


def _read(name: str, data: Path) -> tuple[list[Path], list[Row]]:
    """A task's files and rows. Files may have names as common as test.txt, and others of that name stand beside them:
    each is tried in turn, with those that belong to it from its own folder where they are there."""
    task = LOCAL_TASKS[name]
    first, *others = (_named(file, data, name) for file in task.files)
    refused = []
    for path in first:
        paths = [path, *(min(found, key=lambda other: other.parent != path.parent) for found in others)]
        try:
            rows = list(task.rows(*map(_text_of, paths)))
        except ValueError as error:
            refused.append(f"{path} is not what {name} reads: {error}")
            continue
        if rows:
            return paths, rows
        refused.append(f"{path} holds no question for {name}")
    several = "" if len(refused) == 1 else f"none of {len(refused)} files of that name in {data} will do; "
    raise ValueError(several + refused[0])


def _named(file: str, data: Path, task: str) -> list[Path]:
    """The files of a name, compressed ones included, sorted."""
    if not data.is_dir():
        raise ValueError(f"--data {data} is not a folder: name the one that holds {file}")
    found = sorted([*data.rglob(file), *data.rglob(f"{file}.bz2")])
    if not found:
        raise ValueError(f"{task} reads {file} (or {file}.bz2), which is not in {data}")
    return found


def _text_of(path: Path) -> str:
    raw = path.read_bytes()
    try:
        return (bz2.decompress(raw) if path.suffix == ".bz2" else raw).decode("utf-8")
    except OSError as error:
        raise ValueError(str(error)) from None


def _json_rows(text: str, fields: tuple[str, ...]) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        row = json.loads(line)
        if not isinstance(row, dict) or any(field not in row for field in fields):
            raise ValueError(f"line {number} lacks one of {', '.join(fields)}")
        yield row
