"""The tables of docs/algebra.md and docs/context-parallel.md: of which records, and made by what."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from echo_ska.experiments.algebra import (
    one_off_report,
    operator_error_report,
    recall_map_report,
    state_precision_report,
)
from echo_ska.experiments.state import context_parallel_report, state_bytes_report
from echo_ska.experiments.state.state_bytes import PaperFigure
from echo_ska.training import RunRecord

ROWS: dict[str, tuple[str, Callable[[Sequence[RunRecord]], list[list[str]]]]] = {
    "state-bytes": ("state-bytes", state_bytes_report.length_rows),
    "state-bytes-parts": ("state-bytes", state_bytes_report.part_rows),
    "state-bytes-ladder": (
        "state-bytes",
        lambda records: state_bytes_report.ladder_rows(PaperFigure().ladder(), records),
    ),
    "context-parallel": ("context-parallel", context_parallel_report.byte_rows),
    "context-parallel-difference": ("context-parallel", context_parallel_report.difference_rows),
    "operator-error": ("operator-error", operator_error_report.table_rows),
    "one-off-distractors": ("one-off-distractors", one_off_report.table_rows),
    "one-off-distractors-modes": ("one-off-distractors", one_off_report.mode_rows),
    "recall-map": ("recall-map", recall_map_report.map_rows),
    "recall-map-lagged": ("recall-map", lambda records: recall_map_report.map_rows(records, "lagged")),
    "recall-map-accuracy": ("recall-map", lambda records: recall_map_report.accuracy_rows(records, 2)),
    "recall-map-rule": ("recall-map", recall_map_report.rule_rows),
    "state-precision": ("state-precision", state_precision_report.table_rows),
    "state-precision-lost": ("state-precision", state_precision_report.lost_rows),
    "recall-map-chosen": ("recall-map", lambda records: recall_map_report.chosen_rows(records, 2)),
}
"""By the name between the marks."""
