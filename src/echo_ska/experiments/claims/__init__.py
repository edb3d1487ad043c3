"""The claims of the paper, of the talk and of ours, and the verdicts that the records in results/ give on them.

A claim is one entry of `CLAIMS`: see `Claim`.
"""

from __future__ import annotations

from typing import Any

from echo_ska.experiments.claims import (
    aids,
    aims,
    algebra,
    cliff,
    conditioning,
    drop_in,
    filters,
    frontier,
    gradients,
    language,
    lengths,
    long_text,
    memory_first,
    mqar,
    parallel,
    precision,
    recall_per_byte,
    regression,
    seeds,
    speed,
    state,
    transfer,
    write_gate,
)
from echo_ska.experiments.claims.claim import (
    RULE,
    Claim,
    Criterion,
    Evidence,
    Finding,
    Level,
    Table,
    Verdict,
    Weighed,
    weigh,
)

CLAIMS: tuple[Claim[Any], ...] = (
    mqar.CLAIM,
    lengths.CLAIM,
    transfer.CLAIM,
    filters.CLAIM,
    conditioning.CLAIM,
    state.CLAIM,
    speed.DECODING,
    speed.WALL_CLOCK,
    language.CLAIM,
    *language.LARGER,
    long_text.CLAIM,
    gradients.CLAIM,
    drop_in.CLAIM,
    aims.CLAIM,
    filters.LOOK_AHEAD,
    seeds.CLAIM,
    cliff.CLAIM,
    aids.CLAIM,
    transfer.DROPOUT,
    transfer.DEPTH,
    memory_first.CLAIM,
    write_gate.CLAIM,
    regression.CLAIM,
    algebra.OPERATOR,
    algebra.ONE_OFF,
    algebra.RECALL_MAP,
    precision.CLAIM,
    frontier.CLAIM,
    recall_per_byte.CLAIM,
    parallel.CLAIM,
)
"""In the order of the page: the paper's numbers, then ours."""

__all__ = [
    "CLAIMS",
    "RULE",
    "Claim",
    "Criterion",
    "Evidence",
    "Finding",
    "Level",
    "Table",
    "Verdict",
    "Weighed",
    "weigh",
]
