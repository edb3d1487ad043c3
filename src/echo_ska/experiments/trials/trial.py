"""A trial: one model, trained once and then asked. What every trained experiment is made of.

The models of an experiment differ in their arms alone: what is learnt, steps, batches and questions are the
experiment's, the same for all, and nobody is told which tokens matter. `Trial` is of a recall task; `TextTrial`, in a
module of its own, of text.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Self, cast

import torch
from torch import nn

from echo_ska.evaluation.recall import recall_accuracy
from echo_ska.experiments.trials.changes import Change, ska_layers
from echo_ska.experiments.trials.pool import Job, Stage
from echo_ska.experiments.trials.recorded import RecordedRun
from echo_ska.models import EchoConfig, EchoForCausalLM
from echo_ska.models.presets import build_on_meta, count_parameters, matched_width
from echo_ska.tasks import RecallTask
from echo_ska.training import RecallData, RecallSchedule, Reporter, RunRecord, TrainingConfig, make_record, train
from echo_ska.training.data import DataSource, describe_task
from echo_ska.training.resume import describe_model

EVALUATION_SEED = 1_000_003
TUNING_SEED = 2_000_003
"""Rates are chosen by other sequences than are reported, and neither are of a training."""
SEGMENT_LENGTH = 4096
UNFINISHED = Path("results") / "unfinished"
"""Where runs keep their checkpoints until they are recorded."""


@dataclass(frozen=True)
class Arm:
    """A model that is compared.

    Attributes:
        name: what tables and pictures call it.
        fields: of `EchoConfig`, without `vocab_size`, which is the task's.
        changes: applied to the freshly built network, in order; functions of a module, so that other processes find
            them.
        written_prefix: SKA is handed a mask: it writes the first so many tokens alone. None hands it nothing, as nobody
            else is; comparisons with others keep to that.
    """

    name: str
    fields: Mapping[str, Any]
    changes: tuple[Change, ...] = ()
    written_prefix: int | None = None

    def changed(self, name: str, **fields: Any) -> Arm:
        """The same under another name, with these fields of its configuration."""
        return dataclasses.replace(self, name=name, fields={**self.fields, **fields})

    def config(self, vocab_size: int) -> EchoConfig:
        """The architecture."""
        return EchoConfig(vocab_size=vocab_size, **self.fields)

    def build(self, vocab_size: int, seed: int) -> EchoForCausalLM:
        """The untrained network; `seed` decides every weight."""
        torch.manual_seed(seed)
        network = EchoForCausalLM(self.config(vocab_size))
        for change in self.changes:
            change(network)
        if self.written_prefix is not None:
            for ska in ska_layers(network):
                ska.register_forward_pre_hook(_PrefixMask(self.written_prefix), with_kwargs=True)
        return network


@dataclass(frozen=True)
class _PrefixMask:
    """A hook that gives an SKA layer the mask of a prefix."""

    tokens: int

    def __call__(self, layer: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if len(arguments) > 1 and arguments[1] is not None:
            raise ValueError("A layer that is handed the mask of a prefix reads its sequences whole, from no state.")
        rows, length = arguments[0].shape[:2]
        mask = (torch.arange(length, device=arguments[0].device) < self.tokens).expand(rows, length)
        return arguments, options | {"write_mask": mask}


@dataclass(frozen=True)
class Question:
    """What a trained model is asked.

    Attributes:
        name: what records call it.
        task: what is asked.
        length: tokens in a sequence.
        sequences: how many are asked.
        seed: of them.
    """

    name: str
    task: RecallTask
    length: int
    sequences: int
    seed: int = EVALUATION_SEED

    def describe(self) -> dict[str, Any]:
        """For a record's configuration."""
        return describe_task(self.task) | {"length": self.length, "sequences": self.sequences, "asked_with": self.seed}


Measure = Callable[[EchoForCausalLM, Any], dict[str, Any]]
"""Called with the trained network in eval mode and its trial; returns further figures, JSON."""


class TrainedRun(ABC):
    """What trials share, whatever is learnt: how they are trained, described, found again and tuned.

    A subclass is a frozen dataclass that has these attributes among its fields.

    Attributes:
        experiment: whose record it is.
        arm: what is trained.
        steps, learning_rate: of the training.
        seed: of weights and batches.
        weight_decay: AdamW's.
        measure: a module's function that measures more of the trained network.
    """

    experiment: str
    arm: Arm
    steps: int
    learning_rate: float
    seed: int
    weight_decay: float
    measure: Measure | None

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Token ids of the network."""

    @abstractmethod
    def data(self) -> DataSource:
        """The training batches."""

    @abstractmethod
    def asked(self) -> dict[str, Any]:
        """What is asked of the trained network, as its record's configuration has it."""

    @abstractmethod
    def answers(self, network: EchoForCausalLM, training: RunRecord, stage: Stage) -> dict[str, Any]:
        """The figures of the trained network, which is in eval mode; `training` is the record of its training."""

    @abstractmethod
    def nothing_learnt(self) -> dict[str, Any]:
        """The figures of a training that diverged."""

    @abstractmethod
    def to_tune(self, steps: int, tuned_on: Sequence[Any]) -> Self:
        """The same with seed 0 for so many steps, asked nothing but what decides between learning rates."""

    @staticmethod
    @abstractmethod
    def merit(record: RunRecord) -> tuple[float, ...]:
        """What is largest for the best of the rates that were tried."""

    def with_(self, **changes: Any) -> Self:
        """The same trial but for these fields."""
        replaced: Self = dataclasses.replace(cast(Any, self), **changes)
        return replaced

    def training_config(self, device: str = "cpu") -> TrainingConfig:
        """In float32, on a GPU too; the same but for rounding."""
        return TrainingConfig(
            steps=self.steps,
            learning_rate=self.learning_rate,
            final_learning_rate_fraction=0.0,
            weight_decay=self.weight_decay,
            seed=self.seed,
            precision="auto" if device == "cpu" else "fp32",
            device=device,
            checkpoint_every=250,
            keep_checkpoints=1,
        )

    def describe_data(self) -> dict[str, Any]:
        """What determines the training batches."""
        return self.data().describe()

    def configuration(self, device: str = "cpu") -> dict[str, Any]:
        """What its record has as configuration, known without running it, in the types that JSON gives."""
        parts = {
            "training": dataclasses.asdict(self.training_config(device)),
            "data": self.describe_data(),
            "model": _described(json.dumps({"vocab_size": self.vocab_size, **self.arm.fields})),
            "arm": self.arm.name,
            "changes": [change.__name__ for change in self.arm.changes],
            "written_prefix": self.arm.written_prefix,
            "measure": None if self.measure is None else self.measure.__name__,
            **self.asked(),
        }
        as_json: dict[str, Any] = json.loads(json.dumps(parts))
        return as_json

    def recorded_run(self, device: str = "cpu") -> RecordedRun:
        """The trial as a job, on "cpu" or "cuda", whose record can be found again."""
        name = f"{self.arm.name}, rate {self.learning_rate:g}, seed {self.seed}"
        job = Job(name, run_trial, {"trial": self, "device": device})
        return RecordedRun(job, self.seed, self.configuration(device), self.folder(device))

    def folder(self, device: str = "cpu") -> Path:
        """Where its checkpoints are until it is recorded."""
        described = json.dumps([self.configuration(device), self.seed], sort_keys=True)
        digest = hashlib.sha256(described.encode()).hexdigest()
        return UNFINISHED / f"{self.experiment}-{digest[:16]}"


@dataclass(frozen=True)
class Trial(TrainedRun):
    """One run on a recall task.

    Attributes:
        experiment: whose record it is.
        arm: what is trained.
        task: what it is trained on.
        steps, batch_size, learning_rate: the budget.
        questions: asked afterwards.
        seed: of weights and batches.
        weight_decay: AdamW's.
        measure: a module's function that measures more of the trained network.
        schedule: (task, batch size, weight) each, trained on instead of `task`, which then tells the vocabulary and the
            length whose state is recorded.
    """

    experiment: str
    arm: Arm
    task: RecallTask
    steps: int
    batch_size: int
    learning_rate: float
    questions: tuple[Question, ...]
    seed: int = 0
    weight_decay: float = 0.1
    measure: Measure | None = None
    schedule: tuple[tuple[RecallTask, int, float], ...] = ()

    @property
    def vocab_size(self) -> int:
        """The task's."""
        return self.task.vocab_size

    def data(self) -> RecallData | RecallSchedule:
        """The training batches."""
        if self.schedule:
            return RecallSchedule(self.schedule, self.seed)
        return RecallData(self.task, self.batch_size, self.seed)

    def asked(self) -> dict[str, Any]:
        """The questions."""
        return {"questions": {question.name: question.describe() for question in self.questions}}

    def answers(self, network: EchoForCausalLM, training: RunRecord, stage: Stage) -> dict[str, Any]:
        """Accuracies, and bytes of state."""
        return {
            "training_accuracy": training.figures["accuracy"],
            "state_bytes": network.state_bytes(self.task.length) if network.has_state else None,
            "accuracy": ask(network, self.questions, stage("recall")),
        }

    def nothing_learnt(self) -> dict[str, Any]:
        """No answer is right."""
        return {"training_accuracy": 0.0, "accuracy": {question.name: 0.0 for question in self.questions}}

    def to_tune(self, steps: int, tuned_on: Sequence[Question]) -> Trial:
        """Asked `tuned_on`, with sequences that are not reported."""
        asked = tuple(dataclasses.replace(question, seed=TUNING_SEED) for question in tuned_on)
        return self.with_(seed=0, steps=steps, questions=asked, measure=None)

    @staticmethod
    def merit(record: RunRecord) -> tuple[float, ...]:
        """The mean accuracy; ties by the lower training loss."""
        loss = record.figures["training_loss"]
        return fmean(record.figures["accuracy"].values()), float("-inf") if loss is None else -loss


@functools.lru_cache(maxsize=256)
def _described(fields: str) -> dict[str, Any]:
    """An architecture as records have it, by its fields in JSON; kept, since runs ask for the same few often."""
    return describe_model(build_on_meta(EchoConfig(**json.loads(fields))))


def config_of(record: RunRecord) -> EchoConfig:
    """The architecture of a record's model, all of it."""
    described = record.configuration["model"]
    return _read_config(json.dumps({name: value for name, value in described.items() if name != "class"}))


@functools.lru_cache(maxsize=256)
def _read_config(described: str) -> EchoConfig:
    config: EchoConfig = EchoConfig.from_dict(json.loads(described))
    return config


def as_large_as(arm: Arm, other: Arm, vocab_size: int) -> Arm:
    """`arm` with feed-forward layers of the width that gives it the parameter count of `other`.

    Raises:
        ValueError: no width does within half a percent.
    """
    fields = {name: value for name, value in arm.fields.items() if name != "intermediate_size"}
    parameters = count_parameters(other.config(vocab_size))
    width = matched_width({"vocab_size": vocab_size, **fields}, parameters, arm.name)
    return dataclasses.replace(arm, fields={**fields, "intermediate_size": width})


def run_trial(stage: Stage, *, trial: TrainedRun, device: str = "cpu") -> dict[str, Any]:
    """Train and ask one model: a `RunRecord` as plain data. A run that was stopped goes on from its last checkpoint.

    A training that diverges is a result too: its record says so, with nothing learnt.
    """
    configuration, folder = trial.configuration(device), trial.folder(device)
    torch.backends.cudnn.allow_tf32 = False  # of convolutions, where a GPU would round float32 to 10 bits by default
    network = trial.arm.build(trial.vocab_size, trial.seed)
    started = time.perf_counter()
    figures: dict[str, Any] = {
        "arm": trial.arm.name,
        "learning_rate": trial.learning_rate,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
    }
    try:
        training = train(
            network, trial.data(), trial.training_config(device), directory=folder, reporter=stage("training")
        )
    except FloatingPointError as error:
        seconds = time.perf_counter() - started
        figures |= {"diverged": str(error), "training_loss": None} | trial.nothing_learnt()
    else:
        asking = time.perf_counter()
        network.eval()
        figures |= {"training_loss": training.figures["loss"]} | trial.answers(network, training, stage)
        if trial.measure is not None:
            figures |= trial.measure(network, trial)
        seconds = training.seconds + time.perf_counter() - asking
    record = make_record(trial.experiment, configuration, figures, seed=trial.seed, seconds=seconds)
    return dataclasses.asdict(record)


def ask(network: EchoForCausalLM, questions: tuple[Question, ...], reporter: Reporter) -> dict[str, float]:
    """Accuracy, 0 to 1, of a network by question."""
    accuracies: dict[str, float] = {}
    total = sum(question.length * question.sequences for question in questions)
    before, started = 0, time.perf_counter()
    for question in questions:
        latest = {"accuracy": accuracies[next(reversed(accuracies))]} if accuracies else {}

        def show(read: int, _: int, before: int = before, latest: dict[str, float] = latest) -> None:
            rate = (before + read) / (time.perf_counter() - started)
            reporter.update(before + read, total, latest | {"tokens_per_second": rate})

        accuracies[question.name] = recall_accuracy(
            network, question.task, question.length, question.sequences, question.seed, SEGMENT_LENGTH, progress=show
        )
        before += question.length * question.sequences
    return accuracies
