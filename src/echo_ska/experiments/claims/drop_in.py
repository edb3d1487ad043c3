"""The paper's promise: SKA is a drop-in replacement for attention layers. Here of a trained model."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from echo_ska.experiments.claims.claim import Claim, Criterion, Evidence, Finding, Table
from echo_ska.experiments.claims.evidence import file_of, of_arms, records_of, unmeasured
from echo_ska.experiments.language import replace_attention as experiment
from echo_ska.experiments.language.replace_attention_figure import draw
from echo_ska.experiments.language.replace_attention_results import (
    ARMS,
    CONTROL,
    ORIGINAL,
    PERIOD,
    Results,
    cache_rows,
    figure_of,
    rows,
)

WORSE, KEPT = 0.05, 0.95
HALF, ALL = "every 2nd, carried over", "all layers, carried over"


def gather(folder: Path) -> Evidence[Results]:
    """The original, the control and every conversion."""
    if not records_of(folder, experiment.NAME):
        return unmeasured(folder, experiment.NAME)
    results = experiment.recorded_results(file_of(folder, experiment.NAME))
    return of_arms(folder, experiment.NAME, results, [ORIGINAL, CONTROL, *ARMS], experiment.SEEDS)


def final(results: Results, arm: str, period: int | None) -> float:
    """After both stages: bits per byte, or copies in %; mean over seeds."""
    return fmean(figure_of(record, "finetuned", period) for record in results[arm])


def _text(results: Results, arm: str) -> Finding:
    ours, control = final(results, arm, None), final(results, CONTROL, None)
    return Finding(ours <= control + WORSE, f"{ours:.3f} against {control:.3f}")


def _copying(results: Results, arm: str) -> Finding:
    ours, control = final(results, arm, PERIOD), final(results, CONTROL, PERIOD)
    return Finding(ours >= KEPT * control, f"{ours:.1f} % against {control:.1f} %")


CLAIM: Claim[Results] = Claim(
    key="drop-in",
    title="A drop-in replacement for attention",
    statement="SKA takes the place of attention layers. Judged here on a trained model: a small Llama whose attention "
    "is replaced and distilled predicts text as well, and copies as well, as the same model trained on for as long.",
    source="the paper (arXiv 2605.06997), which trains from scratch; the conversion is ours",
    commands=("echo-ska reproduce replace-attention",),
    gather=gather,
    criteria=(
        Criterion(
            f"Half of the layers: bits per byte of held-out text at most {WORSE:g} above the control's",
            lambda r: _text(r, HALF),
        ),
        Criterion("The same of all layers", lambda r: _text(r, ALL)),
        Criterion(
            f"Half of the layers: at least {100 * KEPT:g} % of the control's copying of {PERIOD} random bytes",
            lambda r: _copying(r, HALF),
        ),
        Criterion("The same of all layers", lambda r: _copying(r, ALL)),
    ),
    summary=lambda r: (
        f"Bits per byte with half of the layers replaced {_text(r, HALF).ours}, with all {_text(r, ALL).ours}; "
        f"copied: {_copying(r, HALF).ours} and {_copying(r, ALL).ours}."
    ),
    tables=lambda r: [
        Table("Held-out text, bits per byte: mean over seeds (lowest-highest)", rows(r)),
        Table(f"{PERIOD} random bytes copied right, %", rows(r, PERIOD)),
        Table("Cache of one sequence, bytes", cache_rows(r)),
    ],
    draw=draw,
    picture="Bits per byte and copied bytes before and after each stage of the conversion, beside both originals.",
    caveats=(
        "A Llama of 0.7M parameters, trained here on one novel: large pretrained models were not at hand.",
        "Copying over a fixed distance takes positions, which SKA does not have; recall by content was not measured.",
        "Equal batches: the model that keeps its attention read 500 different ones, the conversions 300 of these, 200 "
        "of them twice (docs/experiments.md).",
    ),
)
