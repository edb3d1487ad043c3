"""A conversion from its original to its report: replaced, distilled, and measured beside the original at every step."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from echo_ska.convert.data import ReadOn
from echo_ska.convert.distillation import FINETUNING, MATCHING, Finetuning, distil
from echo_ska.convert.measure import CACHE_LENGTHS, copying, held_out_loss
from echo_ska.convert.replace import Replacement, replace_attention
from echo_ska.training import DataSource, Reporter, TrainingConfig, train
from echo_ska.training.bits_per_byte import bits

ConversionStage = Callable[[str], Reporter | None]
"""Called with a stage's name, gives what is told how far it is."""


@dataclasses.dataclass(frozen=True)
class ConversionMeasure:
    """What a model is asked: held-out text, and random tokens to copy.

    Attributes:
        held_out: [N] tokens.
        vocab_size: tokens that are drawn to be copied.
        length: tokens of a window.
        windows: of either.
        bytes_per_token: of the held-out text.
        seed: of the tokens to copy.
        periods: how many tokens are to be copied; None asks for an eighth of a window, and for half of it.
    """

    held_out: Tensor
    vocab_size: int
    length: int
    windows: int = 64
    bytes_per_token: float = 1.0
    seed: int = 0
    periods: tuple[int, ...] | None = None

    def __call__(self, model: nn.Module) -> dict[str, Any]:
        """`loss` in nats a token, `bits_per_byte`, and fractions `copied` by period; leaves the model in eval mode."""
        model.eval()
        loss = held_out_loss(model, self.held_out, self.length, windows=self.windows)
        copied = {
            str(period): copying(model, self.vocab_size, period, windows=self.windows, seed=self.seed)
            for period in self.periods or (max(2, self.length // 8), self.length // 2)
        }
        return {"loss": loss, "bits_per_byte": bits(loss) / self.bytes_per_token, "copied": copied}


@dataclasses.dataclass(frozen=True)
class ConversionRecipe:
    """How attention is replaced and the result distilled.

    Attributes:
        layers, init, rank: as `replace_attention` takes them.
        settings: further ones of the SKA layers.
        matching, finetuning: the two stages of `distil`.
        kl_weight: of the second.
    """

    layers: str | Sequence[int] = "all"
    init: Literal["carry", "fresh"] = "carry"
    rank: int | None = None
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    matching: TrainingConfig = MATCHING
    finetuning: TrainingConfig = FINETUNING
    kl_weight: float = 0.0

    def control(self) -> TrainingConfig:
        """The original's further training: as many steps as both stages have, otherwise as in the second."""
        return dataclasses.replace(self.finetuning, steps=self.matching.steps + self.finetuning.steps)


def convert(
    original: nn.Module,
    data: DataSource,
    recipe: ConversionRecipe,
    measure: Callable[[nn.Module], dict[str, Any]],
    *,
    directory: Path | None = None,
    stage: ConversionStage = lambda name: None,
) -> tuple[nn.Module, Replacement, dict[str, dict[str, Any]]]:
    """Replace, distil and measure.

    Args:
        original: stays as it is.
        data: of both stages, one behind the other: what `trained_on` reads.
        recipe: what to do.
        measure: asked of the model after every step.
        directory: for checkpoints, so that it can be called again after an interruption; None keeps none.
        stage: shows how far a stage is.

    Returns:
        The converted model, what was replaced, and the figures `replaced` (without training), `matched` (with the
        first stage's last loss as `matching_loss`) and `finetuned`.
    """
    student = copy.deepcopy(original)
    with torch.random.fork_rng():
        torch.manual_seed(recipe.matching.seed)  # of what starts afresh, so that a resumed conversion starts alike
        replacement = replace_attention(student, recipe.layers, init=recipe.init, rank=recipe.rank, **recipe.settings)
    figures = {"replaced": measure(student)}
    matching = distil(
        student,
        original,
        data,
        matching=recipe.matching,
        finetuning=None,
        directory=directory,
        reporter=stage("matching"),
    ).matching
    assert matching is not None
    figures["matched"] = measure(student) | {"matching_loss": matching.figures["loss"]}
    distil(
        student,
        original,
        ReadOn(data, recipe.matching.steps),
        matching=None,
        finetuning=recipe.finetuning,
        kl_weight=recipe.kl_weight,
        directory=directory,
        reporter=stage("finetuning"),
    )
    figures["finetuned"] = measure(student)
    return student, replacement, figures


def trained_on(
    original: nn.Module,
    data: DataSource,
    recipe: ConversionRecipe,
    *,
    directory: Path | None = None,
    reporter: Reporter | None = None,
) -> nn.Module:
    """The fair control: a copy of the original, trained on the same batches for as many steps as a conversion takes."""
    control = copy.deepcopy(original)
    folder = None if directory is None else directory / "control"
    train(Finetuning(control), data, recipe.control(), directory=folder, reporter=reporter, name="control")
    return control.eval()


def cache_table(replacement: Replacement) -> dict[str, dict[str, int]]:
    """Bytes of one sequence's cache, before and now, by tokens."""
    rows = {}
    for tokens in CACHE_LENGTHS:
        before, after = replacement.cache_bytes(tokens)
        rows[str(tokens)] = {"before": before, "after": after}
    return rows
