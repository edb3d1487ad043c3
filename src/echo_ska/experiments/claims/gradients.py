"""Claim 11: gradients that reach the query."""

from __future__ import annotations

from pathlib import Path

from echo_ska.experiments.claims.claim import Claim, Criterion, Evidence, Finding, Table
from echo_ska.experiments.claims.evidence import file_of, of_arms
from echo_ska.experiments.claims.words import points
from echo_ska.experiments.recall import gradient_flow as experiment
from echo_ska.experiments.trials.arms import ECHO
from echo_ska.experiments.trials.comparison import Results

ATTENTION = "ssm+attention"
REACHES = 0.05
FULL_RANK = 0.9
FADES = 0.5
LENGTHS = [question.name for question in experiment.QUESTIONS]


def gather(folder: Path) -> Evidence[Results]:
    """Both arms."""
    path = file_of(folder, experiment.NAME)
    results = experiment.recorded_results(path) if path.exists() else {}
    return of_arms(folder, experiment.NAME, results, (ATTENTION, ECHO), experiment.SEEDS)


def faded(results: Results, arm: str) -> float:
    """The largest share of faded questions at any length, once trained."""
    return max(experiment.over_seeds(results[arm], "trained", length, "faded") for length in LENGTHS)


def rank_share(results: Results) -> tuple[float, int]:
    """The lowest mean rank of SKA's Jacobian at any length, once trained; and the rank that it can have."""
    model = results[ECHO][0].configuration["model"]
    # The length of a query, which is given unit norm, has no effect: one direction a head.
    full = min(model["hidden_size"], model["num_heads"] * (model["rank"] - 1))
    return min(experiment.over_seeds(results[ECHO], "trained", length, "rank") for length in LENGTHS), full


def _reaches(results: Results) -> Finding:
    share = faded(results, ECHO)
    return Finding(share <= REACHES, f"at most {points(100 * share)}")


def _full_rank(results: Results) -> Finding:
    rank, full = rank_share(results)
    return Finding(rank >= FULL_RANK * full, f"{rank:.1f} of {full}")


def _softmax_fades(results: Results) -> Finding:
    share = faded(results, ATTENTION)
    return Finding(share >= FADES, f"at most {points(100 * share)}")


CLAIM: Claim[Results] = Claim(
    key="11",
    title="Gradients where softmax saturates",
    statement="SKA keeps gradients of full rank where a saturated softmax kills them.",
    source="the paper (arXiv 2605.06997)",
    commands=("echo-ska reproduce gradient-flow",),
    gather=gather,
    criteria=(
        Criterion(
            f"Trained SKA: at most {100 * REACHES:g} % of questions have a relative gradient below "
            f"{experiment.FADED:g}, at every length",
            _reaches,
            "none",
        ),
        Criterion(
            f"Trained SKA: the query's Jacobian has at least {FULL_RANK:g} of full rank at every length (singular "
            f"values above {experiment.NUMERICAL:g} of the largest)",
            _full_rank,
            "full",
        ),
        Criterion(
            f"Trained softmax attention: at least {100 * FADES:g} % of questions have faded at some length",
            _softmax_fades,
            "gradients die",
        ),
    ),
    summary=lambda r: (
        f"Once trained, SKA's gradient has faded for at most {points(100 * faded(r, ECHO))} of questions at any "
        f"length and softmax attention's for {points(100 * faded(r, ATTENTION))}; SKA's Jacobian has rank "
        f"{_full_rank(r).ours}."
    ),
    tables=lambda r: [Table("Jacobians of the read by the query, means over seeds", experiment.rows(r))],
    draw=experiment.draw,
    picture="How strongly the read follows the query, and its Jacobian's effective rank, against length; before "
    "training dashed.",
    caveats=(
        "Larger models, other layers than the one between two Mamba-2 layers, and gradients during training.",
        "Attention without rotary positions, which still answers beyond the training's length.",
    ),
)
