"""A trial on text: one model reads some megabytes byte by byte and is then scored, in bits per byte, on other texts."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from echo_ska.evaluation.context_length import bits_by_context
from echo_ska.experiments.trials.pool import Stage
from echo_ska.experiments.trials.texts import TRAIN, TextFolder
from echo_ska.experiments.trials.trial import Arm, Measure, TrainedRun
from echo_ska.models import EchoForCausalLM
from echo_ska.training import RunRecord, TextData, TrainingConfig
from echo_ska.training.text import VOCAB_SIZE

UNIFORM = 8.0
"""Bits per byte of a uniform guess."""
CURVE_STEPS = 100
"""Of training, averaged into a point of the learning curve."""


@dataclass(frozen=True)
class Scoring:
    """What a trained model reads.

    Attributes:
        part: of the texts.
        contexts: lengths of context in bytes, see `echo_ska.evaluation.context_length`.
        blocks: that are scored, over all texts of the part together (one a text at least).
    """

    part: str
    contexts: tuple[int, ...]
    blocks: int

    def describe(self) -> dict[str, Any]:
        """For a record's configuration."""
        return {"contexts": list(self.contexts), "blocks": self.blocks}

    def blocks_a_text(self, texts: int) -> int:
        """Blocks of each of so many texts."""
        return max(1, self.blocks // texts)

    def refuse_short(self, texts: TextFolder) -> None:
        """Raise ValueError if a text has not all blocks that this scores of it: before anything is trained."""
        part = texts.parts[self.part]
        longest = max(self.contexts)
        needed = longest // 2 * (self.blocks_a_text(len(part["files"])) + 1)
        for name, length in zip(part["files"], part["bytes"], strict=True):
            if length < needed:
                raise ValueError(
                    f"{self.part}/{name} has {length:,} bytes, but {needed:,} are read to score it at a context of "
                    f"{longest:,}: give longer texts."
                )


@dataclass(frozen=True)
class TextTrial(TrainedRun):
    """One run on text.

    Attributes:
        experiment: whose record it is.
        arm: what is trained.
        texts: what it reads.
        steps, batch_size, length, learning_rate: the budget, in windows of `length` bytes.
        scored: what it is scored on.
        seed: of weights and windows.
        weight_decay: AdamW's.
        measure: a module's function that measures more of the trained network.
        precision: of the training's products, float32 unless told.
    """

    experiment: str
    arm: Arm
    texts: TextFolder
    steps: int
    batch_size: int
    length: int
    learning_rate: float
    scored: tuple[Scoring, ...]
    seed: int = 0
    weight_decay: float = 0.1
    measure: Measure | None = None
    precision: str = "fp32"

    def training_config(self, device: str = "cpu") -> TrainingConfig:
        """See `TrainedRun.training_config`."""
        config = super().training_config(device)
        return config if self.precision == "fp32" else dataclasses.replace(config, precision=self.precision)

    @property
    def vocab_size(self) -> int:
        """The 256 bytes."""
        return VOCAB_SIZE

    def data(self) -> TextData:
        """The training batches."""
        return TextData(self.texts.load(TRAIN), self.batch_size, self.length, self.seed)

    def describe_data(self) -> dict[str, Any]:
        """What `data` says of itself, without reading the texts."""
        return self.texts.describe_training(self.batch_size, self.length, self.seed)

    def asked(self) -> dict[str, Any]:
        """What is scored, and by checksum of which texts; further ones leave a record as it is."""
        texts = self.texts.parts
        return {
            # None, of a part that no record tells of, matches no record.
            "texts": {one.part: texts.get(one.part) for one in self.scored},
            "scored": {one.part: one.describe() for one in self.scored},
        }

    def answers(self, network: EchoForCausalLM, training: RunRecord, stage: Stage) -> dict[str, Any]:
        """The learning curve, bytes of state after the longest context, and bits per byte by part and context."""
        scores: dict[str, dict[str, float]] = {}
        reporter, started = stage("scoring"), time.perf_counter()
        for number, one in enumerate(self.scored):
            texts = [file.tokens for file in self.texts.load(one.part)]

            def show(read: int, total: int, number: int = number) -> None:
                done = number * total + read
                rate = done / (time.perf_counter() - started)
                reporter.update(done, len(self.scored) * total, {"tokens_per_second": rate})

            bits = bits_by_context(network, texts, one.contexts, one.blocks_a_text(len(texts)), progress=show)
            scores[one.part] = {str(context): value for context, value in bits.items()}
        longest = max(max(one.contexts) for one in self.scored)
        return {
            "curve": learning_curve(self.folder(training.configuration["training"]["device"]) / "log.jsonl"),
            "state_bytes": network.state_bytes(longest),
            "bits_per_byte": scores,
        }

    def nothing_learnt(self) -> dict[str, Any]:
        """Every byte is equally likely."""
        scores = {one.part: {str(context): UNIFORM for context in one.contexts} for one in self.scored}
        return {"curve": [], "state_bytes": None, "bits_per_byte": scores}

    def to_tune(self, steps: int, tuned_on: Sequence[Scoring]) -> TextTrial:
        """Scored on `tuned_on`."""
        return self.with_(seed=0, steps=steps, scored=tuple(tuned_on), measure=None)

    @staticmethod
    def merit(record: RunRecord) -> tuple[float, ...]:
        """Minus the mean of its bits per byte."""
        return (-fmean(bits for part in record.figures["bits_per_byte"].values() for bits in part.values()),)


def learning_curve(log: Path) -> list[list[float]]:
    """[steps done, mean loss in nats over the last `CURVE_STEPS` of them] each, from a training's log."""
    lines = map(json.loads, log.read_text(encoding="utf-8").splitlines())
    losses = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    points: dict[int, list[float]] = {}
    for step, loss in losses:
        points.setdefault(-(-step // CURVE_STEPS) * CURVE_STEPS, []).append(loss)
    return [[step, round(fmean(values), 4)] for step, values in points.items()]
