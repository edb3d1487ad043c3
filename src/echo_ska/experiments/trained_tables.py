"""Tables of the trained experiments, from their records alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from echo_ska.experiments.language import (
    language_model,
    language_model_50m,
    language_model_180m,
    language_model_results,
    language_ska,
    replace_attention,
    replace_attention_results,
    scaling,
    zero_shot,
)
from echo_ska.experiments.recall import (
    aids,
    cliff,
    filter_ablation,
    gradient_flow,
    length_conditioning,
    length_generalisation,
    memory_first,
    mqar_frontier,
    mqar_grid,
    recall_per_byte,
    trained_precision,
    transfer,
    write_gate,
)
from echo_ska.experiments.trials.comparison import Results
from echo_ska.experiments.trials.recorded import recorded
from echo_ska.experiments.trials.tuning import Comparison
from echo_ska.training import RunRecord

RESULTS = Path("results")
Rows = Sequence[Sequence[str]]


def _file(name: str) -> Path:
    return RESULTS / f"{name}.jsonl"


def _compared(name: str, comparison: Callable[[], Comparison], rows: Callable[..., Rows]) -> Callable[[], Rows | None]:
    """Rows of a comparison, once every arm has a seed."""

    def table() -> Rows | None:
        found = comparison()
        results = found.recorded(_file(name))
        return rows(results) if len(results) == len(found.trials) else None

    return table


def _orbits() -> Rows | None:
    found = {
        distance: filter_ablation.orbit_comparison(distance).recorded(_file(filter_ablation.NAME))
        for distance in filter_ablation.DISTANCES
    }
    filters = len(filter_ablation.ORBIT_FILTERS)
    whole = {distance: results for distance, results in found.items() if len(results) == filters}
    return filter_ablation.orbit_rows(whole) if whole else None


def _conditioning() -> Rows | None:
    results = length_conditioning.recorded_results(_file(length_conditioning.NAME))
    return length_conditioning.rows(results) if results else None


def _gradients() -> Rows | None:
    results = gradient_flow.recorded_results(_file(gradient_flow.NAME))
    return gradient_flow.rows(results) if results else None


def _transfer() -> Rows | None:
    results = transfer.recorded_results(_file(transfer.NAME))
    whole = all(trial.arm.name in results for trial in transfer.comparison().trials)
    return transfer.rows(results) if whole else None


def _layouts() -> Rows | None:
    results = memory_first.recorded_results(_file(memory_first.NAME))
    return memory_first.rows(results) if len(results) == len(memory_first.COLOURS) else None


def _gates() -> Rows | None:
    far, other = write_gate.recorded_results(_file(write_gate.NAME))
    return write_gate.rows(far, other) if len(other) == len(write_gate.ARMS) else None


def _precisions() -> Rows | None:
    results = trained_precision.recorded_results(_file(trained_precision.NAME))
    return trained_precision.rows(results) if results else None


def _aids(question: str) -> Rows | None:
    results = aids.recorded_results(_file(aids.NAME))
    return aids.rows(results, question) if results else None


def _language(plan: language_model.TextPlan, rows: Callable[[Results], Rows]) -> Rows | None:
    path = _file(plan.name)
    found = plan.recorded_comparison(path)
    results = {} if found is None else found.recorded(path)
    return rows(results) if found is not None and len(results) == len(found.trials) else None


def _language_ska() -> Rows | None:
    results = language_ska.recorded_results(_file(language_ska.NAME), _file(language_ska.PLAN.name))
    return language_ska.rows(results) if language_ska.VARIANTS.keys() <= results.keys() else None


def _zero_shot(rows: Callable[[Sequence[RunRecord]], Rows]) -> Rows | None:
    written = rows(zero_shot.recorded_results(_file(zero_shot.NAME)))
    return written if len(written) > 1 else None


def _cliff() -> Rows | None:
    runs = [trial.with_(seed=seed).recorded_run() for trial in cliff.trials() for seed in range(cliff.SEEDS)]
    found: list[RunRecord] = [record for record in recorded(cliff.NAME, runs, _file(cliff.NAME)) if record is not None]
    rows = cliff.rows(found)
    return rows if len(rows) > 1 else None


def _scaling() -> Rows | None:
    path = _file(scaling.NAME)
    return scaling.rows(results) if (results := scaling.recorded_results(path)) else None


def _replaced(rows: Callable[[replace_attention_results.Results], Rows]) -> Rows | None:
    results = replace_attention.recorded_results(_file(replace_attention.NAME))
    return rows(results) if len(results) == len(replace_attention_results.ARMS) + 2 else None


ROWS: dict[str, Callable[[], Rows | None]] = {
    "length-generalisation": _compared(
        length_generalisation.NAME, length_generalisation.comparison, length_generalisation.rows
    ),
    "mqar-grid": _compared(mqar_grid.NAME, mqar_grid.comparison, mqar_grid.rows),
    "transfer": _transfer,
    "memory-first": _layouts,
    "write-gate": _gates,
    "filter-ablation-recall": _compared(
        filter_ablation.NAME, filter_ablation.recall_comparison, filter_ablation.recall_rows
    ),
    "filter-ablation-orbit": _orbits,
    "trained-precision": _precisions,
    "aids": functools.partial(_aids, aids.QUESTIONS[0].name),
    "aids-long": functools.partial(_aids, aids.QUESTIONS[1].name),
    "length-conditioning": _conditioning,
    "gradient-flow": _gradients,
    "cliff": _cliff,
    "language-model": functools.partial(_language, language_model.PLAN, language_model_results.rows),
    "language-model-contexts": functools.partial(_language, language_model.PLAN, language_model_results.context_rows),
    "language-model-50m": functools.partial(_language, language_model_50m.PLAN, language_model_results.rows),
    "language-model-50m-contexts": functools.partial(
        _language, language_model_50m.PLAN, language_model_results.context_rows
    ),
    "language-model-180m": functools.partial(_language, language_model_180m.PLAN, language_model_results.rows),
    "language-model-180m-contexts": functools.partial(
        _language, language_model_180m.PLAN, language_model_results.context_rows
    ),
    "language-ska": _language_ska,
    "zero-shot": functools.partial(_zero_shot, zero_shot.benchmark_rows),
    "zero-shot-recall": functools.partial(_zero_shot, zero_shot.recall_rows),
    "zero-shot-reading": functools.partial(_zero_shot, zero_shot.reading_rows),
    "replace-attention-text": functools.partial(_replaced, replace_attention_results.rows),
    "replace-attention-copied": functools.partial(
        _replaced, functools.partial(replace_attention_results.rows, period=replace_attention_results.PERIOD)
    ),
    "replace-attention-cache": functools.partial(_replaced, replace_attention_results.cache_rows),
    "mqar-frontier": _compared(mqar_frontier.NAME, mqar_frontier.comparison, mqar_frontier.rows),
    "recall-per-byte": _compared(recall_per_byte.NAME, recall_per_byte.comparison, recall_per_byte.rows),
    "scaling": _scaling,
}
"""By the table's name; None while too little is recorded."""
