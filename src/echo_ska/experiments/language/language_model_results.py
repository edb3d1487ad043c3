"""What is recorded of language-model, as tables read it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from echo_ska.experiments.trials.comparison import Results
from echo_ska.experiments.trials.figures import mean_with_range, short_bytes, short_number
from echo_ska.experiments.trials.texts import TEST
from echo_ska.training import RunRecord
from echo_ska.training.bits_per_byte import over_texts

ECHO, SWIGLU = "echo", "mamba-2 + ska"
HYBRID = "mamba-2 + attention"
NO_POSITIONS = f"{HYBRID}, no positions"
CONTROLS = (
    "transformer",
    "mamba-2",
    HYBRID,
    NO_POSITIONS,
    "mamba-2 + attention, 8 %",
    "gated deltanet",
    "mamba-3",
)
LABELS = {TEST: "unseen authors", "wikitext2": "WikiText-2"}
"""What parts are called, where not by their own names."""


def label(part: str) -> str:
    """What tables call a part of the texts."""
    return LABELS.get(part, part)


def values(records: Sequence[RunRecord], part: str, context: int) -> list[float]:
    """Bits per byte, a seed each."""
    return [record.figures["bits_per_byte"][part][str(context)] for record in records]


def mean(results: Results, arm: str, part: str, context: int) -> float:
    """Bits per byte, the mean over seeds."""
    return fmean(values(results[arm], part, context))


def lead(results: Results, part: str, context: int) -> tuple[float, str]:
    """By how many bits per byte Echo is below the best control, negative if above; and which control that is."""
    best = min((arm for arm in CONTROLS if arm in results), key=lambda arm: mean(results, arm, part, context))
    return mean(results, best, part, context) - mean(results, ECHO, part, context), best


def training_length(results: Results) -> int:
    """Bytes of a training window."""
    return int(next(iter(results.values()))[0].configuration["data"]["length"])


def scored_contexts(results: Results) -> list[int]:
    """The contexts of a comparison, ascending."""
    first = next(iter(results.values()))[0]
    return sorted(map(int, first.figures["bits_per_byte"][TEST]))


def scored_parts(results: Results) -> list[str]:
    """The parts of the texts that were scored."""
    return list(next(iter(results.values()))[0].figures["bits_per_byte"])


def in_order(results: Results) -> list[str]:
    """The arms that are there: the controls, then SKA's."""
    return [name for name in (*CONTROLS, SWIGLU, ECHO) if name in results]


def read_whole(records: Sequence[RunRecord]) -> list[float]:
    """Bits per byte of all unseen texts read whole, a seed each; empty where a model did not."""
    found = [list(record.figures.get("whole", {}).values()) for record in records]
    if not all(found):
        return []
    return [over_texts((text["bits_per_byte"], text["bytes"]) for text in each)[0] for each in found]


def spread(of_seeds: Sequence[float]) -> str:
    """2.051 (2.049-2.053): the mean, and the range where seeds differ; empty for none."""
    return mean_with_range(of_seeds, "{:.3f}".format)


def rows(results: Results) -> list[list[str]]:
    """A row an arm: its rate, its state, and every text at the training's length and at the longest context."""
    contexts, parts = scored_contexts(results), scored_parts(results)
    shown = [(part, context) for part in parts for context in (training_length(results), contexts[-1])]
    headings = [f"{label(part)}, {short_number(context)}" for part, context in shown]
    table = [["model", "rate", f"state at {short_number(contexts[-1])}", *headings, f"{label(TEST)}, read whole"]]
    for name in in_order(results):
        records = results[name]
        state = records[0].figures["state_bytes"]
        table.append(
            [
                name,
                f"{records[0].figures['learning_rate']:g}",
                "" if state is None else short_bytes(state),
                *(spread(values(records, part, context)) for part, context in shown),
                spread(read_whole(records)),
            ]
        )
    return table


def context_rows(results: Results, part: str = TEST) -> list[list[str]]:
    """A row an arm: bits per byte by context; last, how far Echo is ahead of the best control."""
    contexts = scored_contexts(results)
    table = [["model", *(short_number(context) for context in contexts)]]
    for name in in_order(results):
        table.append([name, *(spread(values(results[name], part, context)) for context in contexts)])
    if ECHO in results and any(name in results for name in CONTROLS):
        table.append(["echo ahead of the best control", *(f"{lead(results, part, c)[0]:+.3f}" for c in contexts)])
    return table
