"""The smallest models that the training code can train, and a run that another process can start."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echo_ska.models import EchoConfig, EchoForCausalLM
from echo_ska.training import RunRecord, TrainingConfig, train

VOCAB = 13


@dataclass
class Output:
    logits: Tensor
    loss: Tensor | None
    past_key_values: Tensor


class TinyModel(nn.Module):
    """Embedding, GRU, dropout and a tied head, with Hugging Face's calling convention."""

    def __init__(self, vocab_size: int = VOCAB, width: int = 16, dropout: float = 0.1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.recurrence = nn.GRU(width, width, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, vocab_size, bias=False)
        self.head.weight = self.embedding.weight

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        past_key_values: Tensor | None = None,
        use_cache: bool = False,
    ) -> Output:
        hidden, state = self.recurrence(self.embedding(input_ids), past_key_values)
        logits = self.head(self.dropout(self.norm(hidden)))
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return Output(logits, loss, state)


class CountingData:
    """Sequences that count upwards from a random start, modulo the vocabulary."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def batch(self, step: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(1000 * self.seed + step)
        starts = torch.randint(VOCAB, (4, 1), generator=generator)
        tokens = (starts + torch.arange(12)) % VOCAB
        return {"input_ids": tokens, "labels": tokens.clone()}

    def describe(self) -> dict[str, object]:
        return {"task": "counting", "seed": self.seed}


def build(seed: int = 0, **settings: float) -> TinyModel:
    torch.manual_seed(seed)
    return TinyModel(**settings)  # type: ignore[arg-type]


def build_echo(gate_dropout: float = 0.0) -> EchoForCausalLM:
    """An Echo of a layer of SKA and one of Mamba-2, with tied embeddings."""
    torch.manual_seed(0)
    return EchoForCausalLM(
        EchoConfig(
            vocab_size=VOCAB,
            hidden_size=16,
            num_hidden_layers=2,
            state_size=8,
            intermediate_size=32,
            layer_types=["ska", "mamba2"],
            ska_at_ends=True,
            num_heads=2,
            rank=4,
            head_dim=8,
            gate_dropout=gate_dropout,
            tie_word_embeddings=True,
        )
    )


def config(steps: int = 40, **changes: object) -> TrainingConfig:
    settings: dict[str, object] = {"device": "cpu", "log_every": 3, "checkpoint_every": 5} | changes
    return TrainingConfig(steps=steps, **settings)  # type: ignore[arg-type]


def run(directory: Path | None, steps: int = 40, **changes: object) -> tuple[TinyModel, RunRecord]:
    model = build()
    return model, train(model, CountingData(), config(steps, **changes), directory=directory)


def run_alone(directory: Path, steps: int) -> None:
    """A run for a process of its own, of an Echo that draws random numbers in every step."""
    torch.set_num_threads(1)
    train(build_echo(gate_dropout=0.25), CountingData(), config(steps), directory=directory)
