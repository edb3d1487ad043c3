"""Ours: what raises SKA's recall without a byte more of state."""

from __future__ import annotations

from pathlib import Path

from echo_ska.experiments.claims.claim import Claim, Criterion, Evidence, Finding, Table
from echo_ska.experiments.claims.evidence import of_comparison
from echo_ska.experiments.claims.words import gain
from echo_ska.experiments.recall import mqar_frontier
from echo_ska.experiments.recall import recall_per_byte as experiment
from echo_ska.experiments.trials.comparison import Results

SOME, MUCH = 2.0, 5.0
"""Points."""


def gather(folder: Path) -> Evidence[Results]:
    """The comparison of all variants."""
    return of_comparison(folder, experiment.NAME, experiment.comparison(), mqar_frontier.SEEDS)


def gains(results: Results) -> dict[str, tuple[float, bool]]:
    """By variant, `experiment.gain`; the largest first."""
    found = {name: experiment.gain(results, name) for name in results if name != experiment.START}
    return dict(sorted(found.items(), key=lambda item: -item[1][0]))


def _clear(results: Results, least: float) -> Finding:
    clear = {name: points for name, (points, is_clear) in gains(results).items() if is_clear and points >= least}
    return Finding(bool(clear), "; ".join(f"{name} {gain(points)}" for name, points in clear.items()) or "none")


def _summary(results: Results) -> str:
    found = gains(results)
    (best, (most, _)), *_, (worst, (least, _)) = found.items()
    return (
        f"Of {len(found)} changes {sum(points > 0 for points, _ in found.values())} raise the mean, "
        f"{sum(is_clear for _, is_clear in found.values())} beyond all seeds of the start; most: {best} {gain(most)}; "
        f"least: {worst} {gain(least)}."
    )


CLAIM: Claim[Results] = Claim(
    key="recall-per-byte",
    title="More recall without a byte more of state",
    statement=f"SKA's recall with {experiment.BUDGET // 1024} kB of state can be raised by what costs no state, or "
    "finds its bytes in the rank: heads, widths, delays, Hebbian layers and heads, the ridge's start and rate, "
    "products as keys.",
    source="ours",
    commands=(f"echo-ska reproduce {experiment.NAME}",),
    gather=gather,
    criteria=(
        Criterion(
            f"Some change raises the mean over seeds by at least {SOME:g} points, all of its seeds above all of the "
            "start's",
            lambda r: _clear(r, SOME),
        ),
        Criterion(f"One of these raises it by at least {MUCH:g} points", lambda r: _clear(r, MUCH)),
    ),
    summary=_summary,
    tables=lambda r: [Table("Accuracy, %, mean over seeds (range), and every cell", experiment.rows(r))],
    draw=experiment.draw,
    picture="A bar a change, its seeds as points, against the start; the largest gain on top.",
    caveats=(
        "Many changes are held against one start over three seeds: one of them may be ahead by chance.",
        "States of just as many bytes: each has the largest rank that fits, so that some are smaller (the table says).",
        "One budget, one task, one width; bytes are counted as in mqar-frontier.",
    ),
)
