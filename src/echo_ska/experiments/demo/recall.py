"""The demo's models and their task: who is compared, how each is trained, and how its recall is measured.

Four models of one class and equal parameter counts, trained alike on multi-query recall in 64 tokens. They differ in
the mixer of the middle layer, in their learning rate (each has one that it does well at), and in the feed-forward
width, which makes up for the mixers' different sizes; attention comes with rotary positions, as most models have it,
and with none. No model is told which tokens matter. All have the aids that SKA starts with: a short convolution that
delays the keys, queries that are tied to them. The SSM has them in all of its layers; in those of the others Mamba-2 is
as published.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from echo_ska.evaluation.recall import recall_accuracy
from echo_ska.experiments.trials.arms import NO_POSITIONS
from echo_ska.experiments.trials.changes import Change, even_mamba_aids, no_positions
from echo_ska.experiments.trials.trial import EVALUATION_SEED, SEGMENT_LENGTH
from echo_ska.models import EchoConfig, EchoForCausalLM
from echo_ska.tasks import MultiQueryRecallGrid
from echo_ska.training import RecallData, Reporter, RunRecord, TrainingConfig, train
from echo_ska.training.resume import describe_model

TASK = MultiQueryRecallGrid()  # 8 pairs in 64 tokens, vocabulary 128

STEPS = 400
BATCH_SIZE = 64
HIDDEN_SIZE = 64
NUM_HEADS = 2
RANK = 16
STATE_SIZE = 16
POWER = 2
BLENDED = True


@dataclass(frozen=True)
class RecallModel:
    """A model to train on `TASK`.

    Attributes:
        name: what tables and files call it.
        layer_types: the mixer of each layer, as in `EchoConfig`.
        learning_rate: the peak.
        intermediate_size: the feed-forward layers' width, chosen to make parameter counts equal.
        steps: optimiser steps of `batch_size` sequences.
        batch_size: sequences in a step.
        changes: applied to the freshly built network.
    """

    name: str
    layer_types: tuple[str, ...]
    learning_rate: float
    intermediate_size: int
    steps: int = STEPS
    batch_size: int = BATCH_SIZE
    changes: tuple[Change, ...] = ()

    def config(self) -> EchoConfig:
        """The architecture."""
        return EchoConfig(
            vocab_size=TASK.vocab_size,
            hidden_size=HIDDEN_SIZE,
            num_hidden_layers=len(self.layer_types),
            layer_types=list(self.layer_types),
            num_heads=NUM_HEADS,
            rank=RANK,
            power=POWER,
            blended=BLENDED,
            state_size=STATE_SIZE,
            intermediate_size=self.intermediate_size,
        )

    def build(self, seed: int) -> EchoForCausalLM:
        """The untrained model; `seed` decides every weight."""
        torch.manual_seed(seed)
        network = EchoForCausalLM(self.config())
        for change in self.changes:
            change(network)
        return network

    def training_config(self, seed: int) -> TrainingConfig:
        """The budget. On the CPU wherever it runs: so small a model gains nothing from a GPU."""
        return TrainingConfig(
            steps=self.steps,
            learning_rate=self.learning_rate,
            final_learning_rate_fraction=0.0,
            seed=seed,
            device="cpu",
        )

    def data(self, seed: int) -> RecallData:
        """The training batches."""
        return RecallData(TASK, self.batch_size, seed)


_HYBRID = RecallModel(
    "ssm+attention", ("mamba2", "full_attention", "mamba2"), learning_rate=3e-3, intermediate_size=144
)
# Rates of those in demo-rates: at theirs all answer 99.9 % or more at the training's length there.
RECALL_MODELS = (
    RecallModel(
        "ssm", ("mamba2", "mamba2", "mamba2"), learning_rate=3e-3, intermediate_size=128, changes=(even_mamba_aids,)
    ),
    _HYBRID,
    dataclasses.replace(_HYBRID, name=NO_POSITIONS, changes=(no_positions,)),
    RecallModel("ssm+ska", ("mamba2", "ska", "mamba2"), learning_rate=1e-2, intermediate_size=152),
)


def recall_model(name: str) -> RecallModel:
    """The model of that name.

    Raises:
        ValueError: there is none.
    """
    for model in RECALL_MODELS:
        if model.name == name:
            return model
    raise ValueError(f"There is no recall model {name!r}: choose from {', '.join(m.name for m in RECALL_MODELS)}.")


def train_recall_model(model: RecallModel, seed: int, reporter: Reporter | None) -> tuple[EchoForCausalLM, RunRecord]:
    """Train `model` from scratch; `seed` decides weights and batches. Returns it in eval mode with the run's record."""
    network = model.build(seed)
    record = train(network, model.data(seed), model.training_config(seed), reporter=reporter, name=model.name)
    return network.eval(), record


def recall_configuration(model: RecallModel, seed: int) -> dict[str, Any]:
    """The configuration that `train_recall_model` records, known without training, in the types that JSON gives."""
    parts: dict[str, Any] = {
        "training": dataclasses.asdict(model.training_config(seed)),
        "data": model.data(seed).describe(),
        "model": describe_model(model.build(seed)),
    }
    if model.changes:
        parts["changes"] = [change.__name__ for change in model.changes]
    as_json: dict[str, Any] = json.loads(json.dumps(parts))
    return as_json


def measure_recall(
    network: EchoForCausalLM,
    sequences: Mapping[int, int],
    reporter: Reporter | None,
    seed: int = EVALUATION_SEED,
) -> dict[int, float]:
    """Accuracy on `TASK` by length.

    Args:
        network: a trained model.
        sequences: how many sequences to read, by length in tokens.
        reporter: told of tokens read, of the accuracy at the latest length, and of tokens per second.
        seed: of the sequences.

    Returns:
        The accuracy, 0 to 1, at each length.
    """
    total = sum(length * count for length, count in sequences.items())
    started, before = time.perf_counter(), 0
    figures: dict[str, float] = {}

    def show(read: int, of_length: int) -> None:
        # A length's end is shown once its accuracy is known.
        if reporter is not None and read < of_length:
            figures["tokens_per_second"] = (before + read) / (time.perf_counter() - started)
            reporter.update(before + read, total, figures.copy())

    accuracies = {}
    for length, count in sequences.items():
        accuracies[length] = recall_accuracy(network, TASK, length, count, seed, SEGMENT_LENGTH, progress=show)
        before += length * count
        figures["accuracy"] = accuracies[length]
        show(0, 1)
    return accuracies


@torch.no_grad()
def live_state_bytes(network: EchoForCausalLM, length: int) -> int:
    """Bytes of the cache that `network` really holds after reading one sequence of `length` tokens."""
    tokens = TASK.with_length(length).sample(1, torch.Generator().manual_seed(EVALUATION_SEED)).input_ids
    kept: int = network(input_ids=tokens, use_cache=True, logits_to_keep=1).past_key_values.nbytes
    return kept


def measure_state_bytes(network: EchoForCausalLM, lengths: list[int]) -> dict[int, int]:
    """Bytes of state of one sequence by length: what the model says, checked against the live cache at each.

    Raises:
        RuntimeError: if the two differ, which is a fault in a mixer's `state_bytes`.
    """
    for length in lengths:
        said, live = network.state_bytes(length), live_state_bytes(network, length)
        if said != live:
            raise RuntimeError(f"state_bytes({length}) is {said:,}, but the live cache holds {live:,} bytes.")
    return {length: network.state_bytes(length) for length in lengths}
