"""language-model-180m (claim 9): the eight language models of `language-model` at the paper's 180M parameters.

Eighteen layers of width 768; SKA, or attention in its place, in layers 3, 7, 11 and 15 (counted from 0), the hybrid
with 8 % has it in 4, 9 and 14. Everything else as in `language_model_50m`, but for lower rates and smaller batches:
twice the steps of half as many windows.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rich.console import Console

from echo_ska.experiments.language import language_model_50m
from echo_ska.training import RunRecord

PLAN = dataclasses.replace(
    language_model_50m.PLAN,
    name="language-model-180m",
    shape={**language_model_50m.PLAN.shape, "hidden_size": 768, "num_hidden_layers": 18, "num_heads": 12},
    echo_width=4288,
    recalling=(3, 7, 11, 15),
    few=(4, 9, 14),
    steps=2000,
    batch_size=16,
    rates=(4e-4, 8e-4, 1.6e-3),
    further=(3.2e-3, 6.4e-3),
    at_once=1,
)


def run(
    console: Console, *, seeds: int | None = None, quick: bool = False, text: Path | None = None, device: str = "cpu"
) -> list[RunRecord]:
    """Run what is not recorded, print the tables and draw the picture; see `language_model_50m.run`."""
    return language_model_50m.run_large(PLAN, console, seeds=seeds, quick=quick, text=text, device=device)
