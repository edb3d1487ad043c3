"""transfer (claim 3): trained on system prompts and tool traces, asked six other tasks and one more without training.

A curriculum of system prompts (easy and hard gaps) and tool traces in equal parts, 6,000 steps of 16 sequences, models of
the size of echo-1m with equal parameters, each at its best of the same rates, three seeds. Then, with no further training:
multi-query recall, new system prompts, new tool traces, needles, two hops, the common word; and inverse matching, which the
paper does not have (chance 20 %). About 25 minutes a run on one core.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from rich.console import Console

from echo_ska.experiments.arms import million_arms, small_arms
from echo_ska.experiments.comparison import Results, print_rows, table_rows
from echo_ska.experiments.figures import percent
from echo_ska.experiments.trial import Question, Trial
from echo_ska.experiments.tuning import run_tuned
from echo_ska.tasks import (
    CommonWord,
    InverseMatching,
    MultiHop,
    MultiQueryRecallGrid,
    Needle,
    RecallMixture,
    RecallTask,
    SystemPrompt,
    ToolTrace,
)
from echo_ska.training import RunRecord

NAME = "transfer"
TASK = RecallMixture()
STEPS, QUICK_STEPS, BATCH_SIZE = 6000, 1000, 16
RATES = (1e-3, 3e-3, 1e-2)
TUNING_STEPS = 1500
SEEDS = 3
SEQUENCES = 512

TASKS: dict[str, RecallTask] = {
    "mqar": MultiQueryRecallGrid(),
    "system prompt": SystemPrompt(),
    "tool trace": ToolTrace(),
    "needle": Needle(),
    "multi-hop": MultiHop(),
    "common word": CommonWord(),
}
"""The paper's six; the mean is over these."""
FURTHER: dict[str, RecallTask] = {"inverse matching": InverseMatching()}

PAPER = {
    "ssm": (55.1, 64.2, 56.5, 52.0, 39.3, 52.9),
    "ssm+attention": (76.0, 81.3, 76.2, 81.1, 71.1, 68.2),
    "ssm+ska": (82.2, 85.3, 80.5, 84.2, 76.7, 74.1),
}
"""The paper's figures, %, in the order of `TASKS` (arXiv 2605.06997)."""

QUESTIONS = tuple(Question(name, task, task.length, SEQUENCES) for name, task in (TASKS | FURTHER).items())
TUNED_ON = (Question("curriculum", TASK, TASK.length, 512),)
