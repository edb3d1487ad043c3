"""The demo's text part: a small byte-level Echo learns from one book and reads another, unseen one, start to end."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from echo_ska.evaluation.sampling import sample_text
from echo_ska.experiments.trials.pool import Stage
from echo_ska.models import EchoConfig, EchoForCausalLM
from echo_ska.training import Reporter, TextData, TextScore, TrainingConfig, bits_per_byte, book_path, load_text, train
from echo_ska.training.text import VOCAB_SIZE

PROMPT = "It was "
SAMPLE_BYTES = 280
TEMPERATURE = 0.7


@dataclass(frozen=True)
class TextModel:
    """A byte-level Echo, its budget and its reading; about two minutes on one core.

    Attributes:
        hidden_size, num_heads, rank, state_size, intermediate_size: as in `EchoConfig`; one SKA layer stands between
            two Mamba-2 layers.
        steps, batch_size, length, learning_rate: of the training, in windows of `length` bytes.
        segment_length: bytes of the unseen book in one forward call.
        bytes_before, bytes_after: bytes of it scored before and after training; None is the whole book.
        seed: of weights, windows and the sample.
    """

    hidden_size: int = 96
    num_heads: int = 4
    rank: int = 16
    state_size: int = 16
    intermediate_size: int = 192
    steps: int = 500
    batch_size: int = 16
    length: int = 128
    learning_rate: float = 5e-3
    segment_length: int = 2048
    bytes_before: int | None = None
    bytes_after: int | None = None
    seed: int = 0

    def config(self) -> EchoConfig:
        """The architecture."""
        return EchoConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=self.hidden_size,
            num_hidden_layers=3,
            ska_layers=[1],
            num_heads=self.num_heads,
            rank=self.rank,
            state_size=self.state_size,
            intermediate_size=self.intermediate_size,
        )


def run_text_part(stage: Stage, *, model: TextModel) -> dict[str, Any]:
    """Score the unseen book, train on the other, score again, and let the model write.

    Returns:
        Plain data: `bits_per_byte_before` and `_after` over `bytes_before` and `bytes_after` predicted bytes,
        `state_bytes` after the whole reading and `state_bytes_after_first_segment` of `segment_bytes`, `prompt` and
        `sample`, `parameters`, `steps`, `training_seconds`, `training_bytes`, `trained_on`, `read`, `seed`.
    """
    torch.manual_seed(model.seed)
    network = EchoForCausalLM(model.config())
    train_path, unseen_path = book_path("train"), book_path("unseen")
    unseen = load_text([unseen_path])[0].tokens

    def score(name: str, max_bytes: int | None) -> TextScore:
        show = _ReadingReporter(stage(name))
        return bits_per_byte(
            network, unseen, segment_length=model.segment_length, max_bytes=max_bytes, progress=show.update
        )

    before = score("reading, untrained", model.bytes_before)
    data = TextData(load_text([train_path]), model.batch_size, model.length, model.seed)
    training = TrainingConfig(steps=model.steps, learning_rate=model.learning_rate, seed=model.seed, device="cpu")
    record = train(network, data, training, reporter=stage("training"), name="text")
    first = bits_per_byte(network, unseen, segment_length=model.segment_length, max_bytes=model.segment_length)
    after = score("reading", model.bytes_after)
    return {
        "bits_per_byte_before": before.bits_per_byte,
        "bits_per_byte_after": after.bits_per_byte,
        "bytes_before": before.bytes_scored,
        "bytes_after": after.bytes_scored,
        "state_bytes": after.cache.nbytes,
        "state_bytes_after_first_segment": first.cache.nbytes,
        "segment_bytes": min(model.segment_length, len(unseen)),
        "prompt": PROMPT,
        "sample": sample_text(network, PROMPT, SAMPLE_BYTES, temperature=TEMPERATURE, seed=model.seed),
        "parameters": record.figures["parameters"],
        "steps": model.steps,
        "training_seconds": record.seconds,
        "training_bytes": model.steps * model.batch_size * model.length,
        "trained_on": train_path.name,
        "read": unseen_path.name,
        "seed": model.seed,
    }


class _ReadingReporter:
    """Shows a reading as (bytes read, bytes to read) with its speed."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self.started = time.perf_counter()

    def update(self, read: int, total: int) -> None:
        self.reporter.update(read, total, {"tokens_per_second": read / (time.perf_counter() - self.started)})
