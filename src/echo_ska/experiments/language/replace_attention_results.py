"""What is recorded of replace-attention, as tables read it."""

from __future__ import annotations

from typing import Literal

from echo_ska.convert.measure import CACHE_LENGTHS
from echo_ska.experiments.trials.comparison import Results
from echo_ska.experiments.trials.figures import mean_with_range
from echo_ska.training import RunRecord

PERIOD = 24
"""Random bytes that are to be copied; a head's state has 32 ranks."""

ORIGINAL, CONTROL = "original", "original, trained on"
ARMS: dict[str, tuple[str, Literal["carry", "fresh"]]] = {
    "all layers, carried over": ("all", "carry"),
    "all layers, afresh": ("all", "fresh"),
    "every 2nd, carried over": ("every 2nd", "carry"),
    "every 2nd, afresh": ("every 2nd", "fresh"),
}
"""By name, the layers and the start of a conversion."""

STATES = {"replaced": "untrained", "matched": "after matching", "finetuned": "after cross-entropy"}


def rows(results: Results, period: int | None = None) -> list[list[str]]:
    """A row an arm, without training, after the first stage and after the second: bits per byte, or copies in %.

    Args:
        results: what is shown.
        period: bytes to be copied; None shows bits per byte.
    """
    table = [["model", *STATES.values()]]
    shown = ("{:.3f}" if period is None else "{:.1f}").format
    for arm, records in results.items():
        cells = []
        for state in STATES:
            values = [figure_of(record, state, period) for record in records if state in record.figures]
            cells.append(mean_with_range(values, shown))
        table.append([arm, *cells])
    return table


def cache_rows(results: Results) -> list[list[str]]:
    """A row an arm: parameters, and bytes of one sequence's cache by length; the original's beside them."""
    table = [["model", "parameters", *(f"{tokens:,} tokens" for tokens in CACHE_LENGTHS)]]
    tables = {arm: records[0].figures["cache_bytes"] for arm, records in results.items() if arm in ARMS}
    for arm, records in results.items():
        if arm in ARMS:
            sizes = [tables[arm][str(tokens)]["after"] for tokens in CACHE_LENGTHS]
        elif tables:
            sizes = [next(iter(tables.values()))[str(tokens)]["before"] for tokens in CACHE_LENGTHS]
        else:
            continue
        table.append([arm, f"{records[0].figures['parameters']:,}", *(f"{size:,}" for size in sizes)])
    return table


def figure_of(record: RunRecord, state: str, period: int | None) -> float:
    """Bits per byte of a state, or how much it copies, in %."""
    found = record.figures[state]
    return float(found["bits_per_byte"] if period is None else 100 * found["copied"][str(period)])
