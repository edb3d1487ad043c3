"""What `echo-ska train` can learn: real text, or a recall task; and how it says how well it was learnt.

A corpus, the third goal, stands in `goal_corpus`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn
from transformers import PreTrainedTokenizerFast

from echo_ska.commands.rare_lines import RareLines, say
from echo_ska.evaluation.memory_plot import format_bytes
from echo_ska.evaluation.recall import recall_accuracy
from echo_ska.evaluation.sampling import check_sampling, printable, sample_text
from echo_ska.models import EchoForCausalLM, byte_tokenizer
from echo_ska.tasks import TASKS, RecallTask
from echo_ska.training import (
    DataSource,
    RecallData,
    ScaleConfig,
    TextData,
    TextFile,
    bits_per_byte,
    load_text,
    split_by_file,
)
from echo_ska.training.bits_per_byte import over_texts
from echo_ska.training.text import VOCAB_SIZE, digest

TEXT_LENGTH = 256
PROMPT_BYTES = 64
SCORE_BYTES = 65_536
"""Of each held-out file."""
WRITING = ("score_bytes", "samples", "sample_bytes", "temperature", "top_k")
"""Settings of how held-out text is scored and samples are written, which tasks do without."""
EVALUATED_AT = (1, 2, 4, 8)  # times the training length
EVALUATED_TOKENS = 32_768  # at each of them, about
EVALUATION_SEED = 1_000_003


@dataclass(frozen=True)
class TrainRequest:
    """What was asked for; the options of `echo-ska train`, which documents them."""

    text: list[str]
    data: Path | None
    verify: bool
    task: str | None
    recipe: str | None
    model: str
    settings: list[str]
    steps: int
    batch_size: int
    length: int | None
    learning_rate: float
    seed: int
    output: Path | None
    checkpoint_every: int
    precision: str
    device: str
    scale: ScaleConfig
    tensorboard: bool
    wandb: str | None
    held_out: list[str] | None
    score_bytes: int | None
    samples: int
    sample_bytes: int
    temperature: float
    top_k: int | None
    task_settings: dict[str, int | None]
    task_set: list[str]
    given: frozenset[str] = frozenset()
    """The names of what somebody gave, whatever its value."""


class Goal(Protocol):
    """What to learn, and how to say how well it was learnt."""

    name: str
    data: DataSource
    length: int
    """Tokens in a sequence."""
    vocab_size: int
    scored: bool
    """Whether there is anything to score the model on."""
    tokenizer: PreTrainedTokenizerFast | None
    """To be kept beside the model; None where tokens are no text."""

    def introduce(self, console: Console) -> None:
        """Say what will be learnt."""
        ...

    def check(self, console: Console) -> None:
        """Read what is learnt once before the first step, where it would not be noticed to be damaged otherwise.

        Raises:
            ValueError: it is damaged.
        """
        ...

    def evaluate(self, model: nn.Module, step: int) -> dict[str, Any]:
        """Figures of the model after `step` steps."""
        ...

    def report(
        self, model: EchoForCausalLM, untrained: EchoForCausalLM, figures: dict[str, Any], console: Console
    ) -> None:
        """Print what was learnt, and add to `figures` what the training did not measure."""
        ...


class LearnText:
    """Bytes of real text, some of it held out and scored in bits per byte."""

    name = "train-text"
    vocab_size = VOCAB_SIZE
    scored = True

    def __init__(self, request: TrainRequest) -> None:
        refuse_task_settings(request, "text")
        check_sampling(request.sample_bytes, request.temperature, request.top_k)
        self.score_bytes = bytes_to_score(request, SCORE_BYTES)
        self.request = request
        self.console = Console(quiet=True)  # until it is introduced
        self.tokenizer: PreTrainedTokenizerFast | None = byte_tokenizer()
        self.split = split_by_file(load_text(request.text), request.held_out)
        if all(len(file.tokens) < 2 for file in self.split.held_out):
            raise ValueError(
                "Each text that is held out is of one byte, before which nothing is read: hold out another one by "
                "--held-out PATH, for there is nothing to score."
            )
        self.length = TEXT_LENGTH if request.length is None else request.length
        self.data: DataSource = TextData(self.split.training, request.batch_size, self.length, request.seed)

    def introduce(self, console: Console) -> None:
        """See `Goal`."""
        self.console = console
        size = sum(len(file.tokens) for file in self.split.training)
        say(console, f"Learning {size:,} bytes of text. {self.split.description}")

    def check(self, console: Console) -> None:
        """See `Goal`: text was read whole."""

    def evaluate(self, model: nn.Module, step: int) -> dict[str, Any]:
        """Bits per byte of the held-out text, and the state's bytes after the longest file read."""
        return _score(model, self.split.held_out, self.score_bytes, RareLines(self.console))

    def report(
        self, model: EchoForCausalLM, untrained: EchoForCausalLM, figures: dict[str, Any], console: Console
    ) -> None:
        """See `Goal`."""
        request = self.request
        before = self.evaluate(untrained, 0)["bits_per_byte"]
        read = [file.tokens[: self.score_bytes] for file in self.split.held_out]
        figures["scored_blake2b"] = digest(torch.cat(read))
        figures["bits_per_byte_before"] = before
        figures["samples"] = []
        say(
            console,
            f"Held-out text: {before:.3f} bits per byte before, {figures['bits_per_byte']:.3f} after; "
            f"{format_bytes(figures['state_bytes'])} of state while reading it.",
        )
        for number in range(request.samples):
            file = self.split.held_out[number % len(self.split.held_out)]
            prompt = bytes(file.tokens[:PROMPT_BYTES].tolist()).decode("utf-8", errors="ignore") or "\n"
            written = sample_text(
                model,
                prompt,
                request.sample_bytes,
                temperature=request.temperature,
                top_k=request.top_k,
                seed=request.seed + number,
            )
            figures["samples"].append({"prompt": prompt, "text": written})
            console.print(Text(f"\nSample {number + 1}, from {file.path.name} up to the bar:", style="bold"))
            console.print(Text(printable(prompt) + "|", style="dim") + Text(written), soft_wrap=True)


class LearnRecall:
    """A recall task, asked at several lengths afterwards."""

    scored = True

    def __init__(self, request: TrainRequest) -> None:
        if request.held_out:
            raise ValueError("--held-out is for --text: a task draws new sequences to ask.")
        if given := [name for name in WRITING if name in request.given]:
            raise ValueError(f"{_options(given)} is for --text and --data: a task has no such setting.")
        self.name = f"train-{request.task}"
        assert request.task is not None
        self.task = make_task(request.task, request.length, request.task_settings, request.task_set)
        self.data: DataSource = RecallData(self.task, request.batch_size, request.seed)
        self.length = self.task.length
        self.vocab_size = self.task.vocab_size
        self.tokenizer: PreTrainedTokenizerFast | None = None

    def introduce(self, console: Console) -> None:
        """See `Goal`."""
        say(console, f"Learning {self.task}: {self.task.length} tokens a sequence, chance {self.task.chance:.1%}.")

    def check(self, console: Console) -> None:
        """See `Goal`: a task is no file."""

    def evaluate(self, model: nn.Module, step: int) -> dict[str, Any]:
        """`recall`: the accuracy by length."""
        recall = {}
        for times in EVALUATED_AT:
            length = times * self.task.length
            sequences = min(256, max(8, EVALUATED_TOKENS // length))
            recall[str(length)] = recall_accuracy(model, self.task, length, sequences, EVALUATION_SEED)
        return {"recall": recall}

    def report(
        self, model: EchoForCausalLM, untrained: EchoForCausalLM, figures: dict[str, Any], console: Console
    ) -> None:
        """See `Goal`."""
        figures["state_bytes"] = {length: model.state_bytes(int(length)) for length in figures["recall"]}
        table = Table("tokens", "accuracy", "state")
        for length, accuracy in figures["recall"].items():
            table.add_row(f"{int(length):,}", f"{accuracy:.1%}", format_bytes(figures["state_bytes"][length]))
        console.print(table)


def _score(model: nn.Module, files: Sequence[TextFile], most: int, lines: RareLines) -> dict[str, Any]:
    """Bits per byte over all of `files`, each read from its start, and the largest state that was left."""
    scores: list[tuple[float, int]] = []
    state = before = 0
    texts = [file.tokens[:most] for file in files if len(file.tokens) > 1]  # nothing is before an only byte
    total = sum(map(len, texts))

    def tell(read: int, of: int) -> None:
        lines.say(f"Scoring held-out text: {before + read:,} of {total:,} bytes read.")

    for text in texts:
        score = bits_per_byte(model, text, progress=tell)
        scores.append((score.bits_per_byte, score.bytes_scored))
        state, before = max(state, score.cache.nbytes), before + len(text)
    bits, scored = over_texts(scores)
    return {"bits_per_byte": bits, "bytes_scored": scored, "state_bytes": state}


def bytes_to_score(request: TrainRequest, otherwise: int) -> int:
    """`--score-bytes`, or `otherwise` where it was not given.

    Raises:
        ValueError: it is below 2.
    """
    asked = otherwise if request.score_bytes is None else request.score_bytes
    if asked < 2:
        raise ValueError(f"--score-bytes must be at least 2, got {asked}.")
    return asked


def refuse_task_settings(request: TrainRequest, what: str) -> None:
    """Raise ValueError if a setting of tasks was given to learn `what`, which has none."""
    if given := [name for name, value in request.task_settings.items() if value is not None]:
        raise ValueError(f"{_options(given)} is for --task: {what} has no such setting.")
    if request.task_set:
        raise ValueError(f"--task-set is for --task: {what} has no such setting.")


def make_task(
    name: str, length: int | None, settings: Mapping[str, int | None], task_set: Sequence[str] = ()
) -> RecallTask:
    """The task of that name with the settings that are not None; its own length where `length` is None.

    Args:
        name: a key of `TASKS`.
        length: tokens in a sequence.
        settings: fields and values.
        task_set: more of them, as FIELD=VALUE.

    Raises:
        ValueError: no task has that name or those settings, they do not fit together, or one is given twice.
    """
    if name not in TASKS:
        raise ValueError(f"There is no task {name!r}: choose from {', '.join(TASKS)}.")
    kind: Any = TASKS[name]
    fields = {field.name for field in dataclasses.fields(kind)}
    given: dict[str, Any] = {field: value for field, value in settings.items() if value is not None}
    if foreign := sorted(given.keys() - fields):
        raise ValueError(f"{_options(foreign)} is not a setting of {name}.")
    named = _fields_and_values(name, length, task_set, fields)
    if twice := next((field for field in named if field in given), None):
        raise ValueError(f"Give {_options([twice])} or --task-set {twice}=..., not both.")
    given |= named
    if length is None or "length" in fields:
        return kind(**given | ({} if length is None else {"length": length}))
    if "gap" in given:
        raise ValueError("Give --length or --gap: each follows from the other.")
    return kind(**given).with_length(length)


def _fields_and_values(task: str, length: int | None, task_set: Sequence[str], fields: set[str]) -> dict[str, Any]:
    """What --task-set gives, which reaches every setting of every task; the task itself checks the values."""
    given: dict[str, Any] = {}
    for setting in task_set:
        name, equals, value = setting.partition("=")
        if not (name and equals):
            raise ValueError(f"--task-set takes FIELD=VALUE, as in --task-set questions=2, got {setting!r}.")
        if name not in fields:
            raise ValueError(f"--task-set {setting}: {task} has no setting {name}, only {_listed(fields)}.")
        if name == "length" and length is not None:
            raise ValueError("Give --length or --task-set length=..., not both.")
        try:
            given[name] = json.loads(value)
        except json.JSONDecodeError:
            given[name] = value
    return given


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names))


def _options(names: Sequence[str]) -> str:
    return ", ".join("--" + name.replace("_", "-") for name in names)
