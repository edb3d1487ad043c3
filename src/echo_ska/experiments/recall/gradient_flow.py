"""gradient-flow (claim 11): once recall is learnt, does a gradient still reach the query, through SKA and softmax?

The small SSM + SKA and SSM + attention on four needles in 64 tokens, before and after training, at 64 ... 4,096 tokens.
At every question, the Jacobian of the branch's output [d] with respect to the query [H r] of that token, as it leaves
the short convolution: its norm relative to output and query, |J| |q| / |y|, by how many per cent the read changes for
one per cent of the query; its participation ratio (sum s^2)^2 / sum s^4 of singular values s, an effective rank; and
its numerical rank, the singular values above 1e-3 of the largest. SKA gives every query unit norm, so that its length
has no effect: of r channels a head, r - 1 directions are left. A softmax that has settled on one token gives no
gradient to its query: there the norm should fall. Three seeds at one learning rate; about a minute and a half a run on
one core.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor

from echo_ska.experiments.trials.arms import small_arms
from echo_ska.experiments.trials.comparison import Results, cell, converged, percent_range
from echo_ska.experiments.trials.figures import COLOURS, MARKERS, length_axis, mean_with_range, save
from echo_ska.experiments.trials.studies import print_rows, seed_count, study_files
from echo_ska.experiments.trials.trial import EVALUATION_SEED, Question, Trial
from echo_ska.experiments.trials.tuning import recorded_seeds, run_seeds
from echo_ska.models import EchoForCausalLM
from echo_ska.tasks import Needle, answer_positions
from echo_ska.training import RunRecord

NAME = "gradient-flow"
TASK = Needle(needles=4, length=64)
STEPS, BATCH_SIZE, RATE = 400, 64, 3e-3
SEEDS = 3
LENGTHS = (64, 256, 1024, 4096)
MEASURED = 8
"""Sequences of each length, of four questions each."""
NUMERICAL = 1e-3
FADED = 1e-2
"""A question whose relative norm is below this counts as faded."""

QUESTIONS = tuple(Question(str(length), TASK, length, max(32, 131_072 // length)) for length in LENGTHS)


def trials() -> list[Trial]:
    """The two arms whose middle layer has queries."""
    return [
        Trial(NAME, arm, TASK, STEPS, BATCH_SIZE, RATE, QUESTIONS, measure=gradient_flow)
        for arm in small_arms(TASK.vocab_size)
        if arm.name != "ssm"
    ]


def gradient_flow(network: EchoForCausalLM, trial: Trial) -> dict[str, Any]:
    """By length, before and after training: the median and the faded share of relative norms, and the mean ranks."""
    untrained = trial.arm.build(trial.task.vocab_size, trial.seed).eval()
    return {
        "gradient": {
            state: {question.name: _measure(model, question) for question in trial.questions}
            for state, model in (("untrained", untrained), ("trained", network))
        }
    }


def _measure(network: EchoForCausalLM, question: Question) -> dict[str, float]:
    generator = torch.Generator().manual_seed(EVALUATION_SEED)
    mixer: Any = network.model.layers[1].mixer
    norms, participation, ranks = [], [], []
    for _ in range(MEASURED):
        batch = question.task.with_length(question.length).sample(1, generator)
        _, positions = answer_positions(batch.labels)
        inputs: list[Tensor] = []
        handle = mixer.register_forward_pre_hook(lambda module, arguments, inputs=inputs: inputs.append(arguments[0]))
        with torch.no_grad():
            network(batch.input_ids, use_cache=False)
        handle.remove()
        jacobian, query, output = query_jacobian(mixer, inputs[0], positions - 1)
        values = torch.linalg.svdvals(jacobian.double())  # [N, min(d, H r)]
        squares = values.square()
        norms += (squares.sum(-1).sqrt() * query.norm(dim=-1) / output.norm(dim=-1)).tolist()
        participation += (squares.sum(-1).square() / squares.square().sum(-1)).tolist()
        ranks += (values > NUMERICAL * values[:, :1]).sum(-1).tolist()
    return {
        "norm": median(norms),
        "faded": fmean(norm < FADED for norm in norms),
        "participation": fmean(participation),
        "rank": fmean(ranks),
    }


def query_jacobian(mixer: Any, hidden_states: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Jacobians of a mixer's output with respect to the query of the same token.

    Args:
        mixer: one with query, key and value projections `qkv`.
        hidden_states: [1, T, d], its input.
        positions: [N] int64, the tokens.

    Returns:
        Jacobians [N, d, H r], queries [N, H r] and outputs [N, d].
    """
    queries: list[Tensor] = []

    def with_leaf(module: torch.nn.Module, arguments: Any, result: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        leaf = result[0].detach().requires_grad_()
        queries.append(leaf)
        return leaf, *result[1:]

    handle = mixer.qkv.register_forward_hook(with_leaf)
    try:
        output = mixer(hidden_states.detach())[0][0, positions]  # [N, d]
    finally:
        handle.remove()
    # A query is read at its own token alone, so that one backward pass serves all tokens.
    rows = [
        torch.autograd.grad(output[:, i].sum(), queries[0], retain_graph=True)[0][0, positions].flatten(1)
        for i in range(output.shape[-1])
    ]
    return torch.stack(rows, dim=1), queries[0].detach()[0, positions].flatten(1), output.detach()


def run(console: Console, *, seeds: int | None = None, quick: bool = False) -> list[RunRecord]:
    """Run what is not recorded, print the table and draw the picture. `quick` takes one seed, in files of its own."""
    path, picture = study_files(NAME, quick)
    results = run_seeds(console, trials(), seed_count(seeds, 1 if quick else SEEDS), path)
    print_rows(console, "Jacobians of the read by the query, means over seeds", rows(results))
    draw(results, picture)
    return [record for records in results.values() for record in records]


def recorded_results(path: Path) -> Results:
    """What is recorded of both arms."""
    found = {trial.arm.name: recorded_seeds(trial, path) for trial in trials()}
    return {arm: records for arm, records in found.items() if records}


def over_seeds(records: Sequence[RunRecord], state: str, length: str, name: str) -> float:
    """The mean of a figure over seeds."""
    return fmean(record.figures["gradient"][state][length][name] for record in records)


def rows(results: Results) -> list[list[str]]:
    """A row an arm, state and length."""
    table = [["model", "", "tokens", "accuracy, %", "relative norm", "faded, %", "participation ratio", "rank"]]
    for arm, records in converged(results).items():
        for state in ("untrained", "trained"):
            for question in QUESTIONS:
                name = question.name
                found = {
                    figure: [record.figures["gradient"][state][name][figure] for record in records]
                    for figure in ("norm", "faded", "participation", "rank")
                }
                table.append(
                    [
                        arm,
                        state,
                        f"{question.length:,}",
                        cell(records, name) if state == "trained" else "",
                        mean_with_range(found["norm"], "{:.3g}".format),
                        percent_range(found["faded"]),
                        mean_with_range(found["participation"], "{:.1f}".format),
                        mean_with_range(found["rank"], "{:.1f}".format),
                    ]
                )
    return table


def draw(results: Results, path: Path) -> None:
    """Relative norm and participation ratio against length, untrained models dashed."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, 2)
    titles = {"norm": "change of the read by the query, relative", "participation": "effective rank of the Jacobian"}
    for axes, (name, title) in zip(panels, titles.items(), strict=True):
        for arm, records in converged(results).items():
            for state, style in (("untrained", (0, (3, 2))), ("trained", "-")):
                values = [over_seeds(records, state, str(length), name) for length in LENGTHS]
                label = f"{arm}, {state}"
                axes.plot(LENGTHS, values, color=COLOURS[arm], marker=MARKERS[arm], linestyle=style, label=label)
        length_axis(axes, LENGTHS, "tokens")
        axes.set_title(title, loc="left", fontsize=10)
    panels[0].set_yscale("log")
    figure.legend(*panels[0].get_legend_handles_labels(), frameon=False, ncols=4, loc="outside upper left", fontsize=9)
    save(figure, path)
