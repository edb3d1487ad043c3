"""zero-shot: what the trained model in checkpoints/ answers without training for it, beside chance; how it reads.

`checkpoints/echo-books`, 1M parameters that have read novels byte by byte: the first 500 questions of HellaSwag, PIQA,
ARC and LAMBADA and the first 20 articles of WikiText-2, by lm-evaluation-harness from local files; needles (RULER) and
bAbI's facts (BABILong) hidden in a novel it has not read, at 1k to 128k tokens, with the bytes it keeps and the most
memory that its process has taken; and a novel of a million bytes, read byte by byte and in segments of several lengths:
*Jane Eyre* in the records, one of the novels that the model was trained on, for ways of reading are compared there. A
model of this size is expected to answer by chance: the point is that every task works, and that tables call chance what
is chance. About an hour and a half of one core, most of it the novel's bytes, one by one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging

from echo_ska.evaluation.babilong import load_babi, sample_folder
from echo_ska.evaluation.harness import Harness, require_harness
from echo_ska.evaluation.hidden_text import Prose, TextTask
from echo_ska.evaluation.local_tasks import chance_of, files_of, prepare
from echo_ska.evaluation.needle import needle_tasks
from echo_ska.evaluation.text_recall import text_recall, token_counter
from echo_ska.experiments.trials.figures import short_bytes, short_number
from echo_ska.experiments.trials.pool import Job, Stage
from echo_ska.experiments.trials.recorded import RecordedRun, records_named, run_missing
from echo_ska.experiments.trials.studies import print_rows
from echo_ska.memory import model_fingerprint
from echo_ska.models import EchoForCausalLM
from echo_ska.models.own_code import OWN_CODE_IS_NOT_RUN
from echo_ska.models.segments import SEGMENT_LENGTH
from echo_ska.training import RunRecord, bits_per_byte, book_path, load_text, make_record
from echo_ska.training.records import peak_memory_bytes

NAME = "zero-shot"
MODEL = Path("checkpoints") / "echo-books"
QUESTIONS = {
    "hellaswag_local": 500,
    "piqa_local": 500,
    "arc_easy_local": 500,
    "arc_challenge_local": 500,
    "lambada_local": 500,
    "wikitext_local": 20,
}
RECALLED = ("single", "multi-key", "qa1", "qa2")
LENGTHS = (1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 17)
SAMPLES = 20
SEGMENTS = (1, 512, 4096, 16_384)
"""Bytes at a time, ascending: the most memory that the process has taken is told after each."""
MOST_BYTES = 1 << 20
"""Of the novel that is read in several ways: the longest text in a folder called train within it."""
SHOWN_EVERY = 4096
ERRORS = 2.0
"""A score within so many standard errors of chance is called chance."""


@dataclass(frozen=True)
class Asked:
    """One job.

    Attributes:
        kind: "benchmark", "recall" or "reading".
        task: a name in `QUESTIONS` or `RECALLED`; "novel" of a reading.
        folder: of the reader's texts; where it is does not matter to the record. None where records alone are at hand.
        settings: further things that decide the figures, JSON.
    """

    kind: str
    task: str
    folder: Path | None
    settings: str

    def files(self) -> list[Path]:
        """What is asked from.

        Raises:
            ValueError: a file is missing or not in its form.
        """
        assert self.folder is not None
        if self.kind == "benchmark":
            return files_of(self.task, self.folder)
        if self.kind == "reading":
            return [path for path in (_novel(self.folder),) if path is not None]
        stories = sorted(sample_folder().rglob(f"{self.task}_*.txt")) if self.task.startswith("qa") else []
        return [book_path("unseen"), *stories]

    def configuration(self, fingerprint: str) -> dict[str, Any]:
        """A record's, without its `files`."""
        return {"kind": self.kind, "task": self.task, "model": fingerprint, **json.loads(self.settings)}

    def recorded_run(self, fingerprint: str) -> RecordedRun:
        """As a job whose record can be found again: by the model, and by what is asked, down to its last byte."""
        files = {path.name: hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest() for path in self.files()}
        configuration = self.configuration(fingerprint) | {"files": files}
        job = Job(f"{self.kind}, {self.task}", run_asked, {"asked": self, "configuration": configuration})
        return RecordedRun(job, 0, configuration)

    def is_of(self, record: RunRecord, fingerprint: str) -> bool:
        """Whether a record is of this job and model, whichever files it was asked from."""
        described = {key: value for key, value in record.configuration.items() if key != "files"}
        return "files" in record.configuration and described == self.configuration(fingerprint)


def asked(folder: Path | None, quick: bool = False) -> list[Asked]:
    """All jobs, the longest first; of a folder without a novel, the same but for the reading."""
    found = []
    if not quick and (folder is None or _novel(folder) is not None):
        found.append(Asked("reading", "novel", folder, json.dumps({"segments": SEGMENTS})))
    lengths, samples = (LENGTHS[:2], 5) if quick else (LENGTHS, SAMPLES)
    found += [
        Asked("recall", task, folder, json.dumps({"lengths": lengths, "samples": samples, "seed": 0}))
        for task in RECALLED
    ]
    for task, questions in QUESTIONS.items():
        count = max(1, questions // 25) if quick else questions
        found.append(Asked("benchmark", task, folder, json.dumps({"questions": count})))
    return found


def run(
    console: Console, *, seeds: int | None = None, quick: bool = False, text: Path | None = None
) -> list[RunRecord]:
    """Run what is not recorded and print the tables.

    `quick` asks a few questions at two lengths and leaves the novel out, in a file of its own. `text` is a folder with
    the benchmarks' files (docs/commands.md) and texts.

    Raises:
        ValueError: the model, the harness, or the files are not there, or `seeds` is given.
        JobError: a run failed; those that ended before it are recorded.
    """
    if seeds not in (None, 1):
        raise ValueError(f"{NAME} asks the benchmarks' own questions and draws nothing at random: leave --seeds out.")
    if text is None or not text.is_dir():
        raise ValueError(
            f"{NAME} asks from files that are not part of it: give --text a folder that holds them and some novels "
            "(docs/commands.md lists the files; subfolders count)."
        )
    if not (MODEL / "config.json").is_file():
        raise ValueError(f"There is no {MODEL} in this folder: start {NAME} in a checkout of the repository.")
    require_harness()
    path = Path("results") / f"{NAME}{'-quick' if quick else ''}.jsonl"
    fingerprint = model_fingerprint(_load())
    jobs = [one.recorded_run(fingerprint) for one in asked(text.absolute(), quick)]
    records = run_missing(console, NAME, jobs, path)
    print_rows(console, f"{MODEL.name}, asked without training for it", benchmark_rows(records))
    print_rows(console, "Right answers about facts hidden in a novel, %", recall_rows(records))
    return records


def run_asked(stage: Stage, *, asked: Asked, configuration: dict[str, Any]) -> dict[str, Any]:
    """One job: a `RunRecord` as plain data."""
    started = time.perf_counter()
    model = _load()
    tokenizer = AutoTokenizer.from_pretrained(MODEL, **OWN_CODE_IS_NOT_RUN)
    ask = {"benchmark": _benchmark, "recall": _recall, "reading": _read}[asked.kind]
    figures = ask(stage, model, tokenizer, asked)
    seconds = time.perf_counter() - started
    return dataclasses.asdict(make_record(NAME, configuration, figures, seed=0, seconds=seconds))


def _benchmark(
    stage: Stage, model: EchoForCausalLM, tokenizer: PreTrainedTokenizerBase, asked: Asked
) -> dict[str, Any]:
    """`questions`, `metrics` (see `Harness.ask`) and `chance`, None where there is no such thing."""
    assert asked.folder is not None
    limit = json.loads(asked.settings)["questions"]
    with tempfile.TemporaryDirectory() as work:
        prepared = prepare([asked.task], asked.folder, Path(work))
        chance = chance_of(prepared[0], limit)
        stage("asking").update(0, limit, {})
        with contextlib.redirect_stderr(io.StringIO()):  # the harness's own bars, one for every job at once
            scores = Harness(prepared).ask(model, tokenizer, limit=limit, batch_size=8)
    return scores[asked.task] | {"chance": chance}


def _recall(stage: Stage, model: EchoForCausalLM, tokenizer: PreTrainedTokenizerBase, asked: Asked) -> dict[str, Any]:
    """`by_length`: `TextRecall` and `peak_memory_bytes` of the process so far, the lengths ascending."""
    settings = json.loads(asked.settings)
    measure = token_counter(tokenizer)
    tasks: Sequence[TextTask] = (
        needle_tasks([asked.task]) if not asked.task.startswith("qa") else load_babi(None, [asked.task])
    )
    task = tasks[0].limited_to(settings["lengths"][0], measure)
    prose = Prose([book_path("unseen")])
    reporter, rows, done = stage("asking"), [], 0
    total = settings["samples"] * sum(settings["lengths"])
    for length in settings["lengths"]:
        base = done

        def show(tokens: int) -> None:
            nonlocal done
            done += tokens
            reporter.update(done, total, {})

        found = text_recall(
            model, tokenizer, task, prose, length, settings["samples"], settings["seed"], measure=measure, progress=show
        )
        done = base + length * settings["samples"]
        rows.append(dataclasses.asdict(found) | {"peak_memory_bytes": peak_memory_bytes()})
    return {"by_length": rows}


def _read(stage: Stage, model: EchoForCausalLM, tokenizer: PreTrainedTokenizerBase, asked: Asked) -> dict[str, Any]:
    """`bytes` that were read, and `by_segment`, by bytes of a segment `bits_per_byte`, `state_bytes` at the end,
    compact, `peak_memory_bytes` of the process so far, and `seconds`."""
    text = load_text(asked.files())[0].tokens
    found = {}
    for segment in json.loads(asked.settings)["segments"]:
        reporter, started = stage(f"reading {len(text):,} bytes, {segment} at a time"), time.perf_counter()

        def show(read: int, total: int, reporter: Any = reporter) -> None:
            if read % SHOWN_EVERY == 0 or read == total:
                reporter.update(read, total, {})

        score = bits_per_byte(model, text, segment_length=segment, progress=show)
        score.cache.compact()
        found[str(segment)] = {
            "bits_per_byte": score.bits_per_byte,
            "state_bytes": score.cache.nbytes,
            "peak_memory_bytes": peak_memory_bytes(),
            "seconds": time.perf_counter() - started,
        }
    return {"bytes": len(text), "by_segment": found}


def _load() -> EchoForCausalLM:
    logging.disable_progress_bar()
    model: EchoForCausalLM = EchoForCausalLM.from_pretrained(MODEL, use_safetensors=True, local_files_only=True)
    return model.eval()


def _novel(folder: Path) -> Path | None:
    """The longest text in a folder called train within `MOST_BYTES`."""
    within = [path for path in folder.rglob("train/*.txt") if 1 < path.stat().st_size <= MOST_BYTES]
    return max(within, key=lambda path: (path.stat().st_size, path.name), default=None)


def recorded_results(path: Path) -> list[RunRecord]:
    """The newest record of each job of the newest model in a file, as far as there are any."""
    newest_first = records_named(NAME, path)[::-1]
    if not newest_first:
        return []
    fingerprint = newest_first[0].configuration["model"]
    found = (next((r for r in newest_first if one.is_of(r, fingerprint)), None) for one in asked(None))
    return [record for record in found if record is not None]


def _of(records: Sequence[RunRecord], kind: str) -> dict[str, Mapping[str, Any]]:
    """Figures by task."""
    return {r.configuration["task"]: r.figures for r in records if r.configuration["kind"] == kind}


def recalled(records: Sequence[RunRecord]) -> dict[str, Mapping[str, Any]]:
    """Figures of facts hidden in prose, by task."""
    return _of(records, "recall")


def verdict(value: float, error: float | None, chance: float, questions: int) -> str:
    """Above, at or below chance, by `ERRORS` standard errors: the measured one, or chance's own where that is larger.

    Few questions that are all answered alike have a measured error of 0.
    """
    away = value - chance
    if abs(away) <= ERRORS * max(error or 0.0, math.sqrt(chance * (1 - chance) / questions)):
        return "chance"
    return "above chance" if away > 0 else "below chance"


def benchmark_rows(records: Sequence[RunRecord]) -> list[list[str]]:
    """A row a task and metric: score, standard error, chance, and whether it is more than that."""
    table = [["task", "metric", "questions", "score", "± error", "chance", "which is"]]
    for task, figures in _of(records, "benchmark").items():
        for metric, found in figures["metrics"].items():
            value, error, chance = found["value"], found["standard_error"], figures["chance"]
            judged = metric.startswith("acc") and chance is not None
            table.append(
                [
                    task.removesuffix("_local"),
                    metric,
                    f"{figures['questions']:,}",
                    f"{value:.3f}" if value < 1000 else f"{value:.3g}",
                    "" if error is None else f"{error:.3f}" if error < 1000 else f"{error:.3g}",
                    f"{chance:.3f}" if judged else "",
                    verdict(value, error, chance, figures["questions"]) if judged else "",
                ]
            )
    return table


def recall_rows(records: Sequence[RunRecord]) -> list[list[str]]:
    """A row a task: right answers by length, chance, the state, and how much more memory the longest text took."""
    found = recalled(records)
    lengths = [row["length"] for row in next(iter(found.values()))["by_length"]] if found else []
    table = [["task", *map(short_number, lengths), "chance", "state", "memory"]]
    for task, figures in found.items():
        by_length = figures["by_length"]
        cells = []
        for row in by_length:
            shown = f"{100 * row['accuracy']:.0f} ± {100 * row['standard_error']:.0f}"
            name = verdict(row["accuracy"], row["standard_error"], row["chance"], row["samples"])
            cells.append(shown if name == "chance" else f"{shown} ({name.split()[0]})")
        sizes = sorted({row["state_bytes"] for row in by_length})
        growth = memory_growth(by_length)
        state = " to ".join(short_bytes(size) for size in dict.fromkeys((sizes[0], sizes[-1])))
        table.append(
            [task, *cells, f"{100 * by_length[0]['chance']:.0f}", state, "" if growth is None else f"{growth:.2f}"]
        )
    return table


def memory_growth(by_length: Sequence[Mapping[str, Any]]) -> float | None:
    """The most memory of the process after the longest text, over that after the first one that fills a segment.

    A shorter one takes less than a whole segment's activations. None where the system does not tell.
    """
    whole = [row["peak_memory_bytes"] for row in by_length if row["length"] >= SEGMENT_LENGTH] or [
        row["peak_memory_bytes"] for row in by_length
    ]
    return None if None in whole else float(whole[-1] / whole[0])


def reading_rows(records: Sequence[RunRecord]) -> list[list[str]]:
    """A row a segment length: bits per byte, the state after the novel, and the most memory up to then."""
    table = [["bytes read", "at a time", "bits per byte", "state after them, bytes", "peak memory", "seconds"]]
    for figures in _of(records, "reading").values():
        for segment, row in figures["by_segment"].items():
            peak = row["peak_memory_bytes"]
            table.append(
                [
                    f"{figures['bytes']:,}",
                    f"{int(segment):,}",
                    f"{row['bits_per_byte']:.6f}",
                    f"{row['state_bytes']:,}",
                    "" if peak is None else short_bytes(peak),
                    f"{row['seconds']:,.0f}",
                ]
            )
    return table
