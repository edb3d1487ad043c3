"""language-model-50m (claim 9): the eight language models of `language-model` at 50M parameters, for one GPU.

Twelve layers of width 512, in bfloat16, on 32.8 MB in random windows of `train/`: 1,000 steps of 32 windows of 1,024
bytes; SKA, or attention in its place, in layers 3, 6 and 9 (counted from 0), the hybrid with 8 % has it in 4 and 8.
Everything else as in `language-model`: equal parameters, the same rates tried by all, the same bytes scored at every
context. One seed, since a training takes minutes of a large GPU; `--seeds` runs more.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from echo_ska.experiments.language.language_model import TextPlan, read_whole
from echo_ska.training import RunRecord

PLAN = TextPlan(
    name="language-model-50m",
    shape={
        "hidden_size": 512,
        "num_hidden_layers": 12,
        "num_heads": 8,
        "rank": 48,
        "state_size": 64,
        "feed_forward": "swiglu",
    },
    echo_width=2624,
    recalling=(3, 6, 9),
    few=(4, 8),
    steps=1000,
    batch_size=32,
    length=1024,
    rates=(7e-4, 1.5e-3, 3e-3),
    further=(6e-3, 1.2e-2),
    tuning_steps=150,
    measure=read_whole,
    precision="bf16",
    at_once=2,
    seeds=1,
)


def run(
    console: Console, *, seeds: int | None = None, quick: bool = False, text: Path | None = None, device: str = "cpu"
) -> list[RunRecord]:
    """Run what is not recorded, print the tables and draw the picture; see `run_large`."""
    return run_large(PLAN, console, seeds=seeds, quick=quick, text=text, device=device)


def run_large(
    plan: TextPlan, console: Console, *, seeds: int | None, quick: bool, text: Path | None, device: str
) -> list[RunRecord]:
    """`language_model.run` for a plan that needs a GPU.

    Raises:
        ValueError: it is to run on a CPU, which would take days; the quick form may.
    """
    if device == "cpu" and not quick:
        raise ValueError(f"{plan.name} would take days on a CPU: give --device cuda, or --quick.")
    return plan.run(console, seeds=seeds, quick=quick, text=text, device=device)
