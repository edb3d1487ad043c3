"""Records of experiments, read as evidence: whole comparisons, seeds, and what is missing from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from echo_ska.experiments.claims.claim import Evidence
from echo_ska.experiments.trials.comparison import Results
from echo_ska.experiments.trials.recorded import records_named
from echo_ska.experiments.trials.tuning import Comparison
from echo_ska.training import RunRecord


def file_of(folder: Path, name: str) -> Path:
    """An experiment's records."""
    return folder / f"{name}.jsonl"


def records_of(folder: Path, name: str) -> list[RunRecord]:
    """All records of an experiment, oldest first; none where there is no file.

    Raises:
        ValueError: a line of the file is not a record.
    """
    return records_named(name, file_of(folder, name))


def newest(records: Iterable[RunRecord]) -> list[RunRecord]:
    """The newest record of each configuration and seed."""
    found: dict[Any, RunRecord] = {}
    for record in records:
        found[json.dumps([record.configuration, record.seed], sort_keys=True)] = record
    return list(found.values())


def unmeasured(folder: Path, name: str) -> Evidence[Any]:
    """The evidence of an experiment that has not been run: none, and what there is instead."""
    quick = file_of(folder, f"{name}-quick")
    beside = f" ({quick.name} holds a quick run, which is not judged)" if quick.exists() else ""
    return Evidence(missing=(f"all of {name}{beside}",))


def of_comparisons(folder: Path, name: str, comparisons: Sequence[Comparison], seeds: int) -> Evidence[list[Results]]:
    """The results of an experiment's comparisons, in their order; measured once every arm has a seed.

    Args:
        folder: of the records.
        name: the experiment's.
        comparisons: all of it.
        seeds: how many an arm should have.

    Raises:
        ValueError: the records cannot be read.
    """
    everything = records_of(folder, name)
    if not everything:
        return unmeasured(folder, name)
    path = file_of(folder, name)
    found: list[Results] = [comparison.recorded(path) for comparison in comparisons]
    used = [record for comparison in comparisons for record in comparison.tries(path)]
    missing: list[str] = []
    for comparison, results in zip(comparisons, found, strict=True):
        used += [record for records in results.values() for record in records]
        missing += missing_seeds({t.arm.name: len(results.get(t.arm.name, ())) for t in comparison.trials}, seeds)
    whole = all(
        trial.arm.name in results
        for comparison, results in zip(comparisons, found, strict=True)
        for trial in comparison.trials
    )
    return Evidence(found if whole else None, tuple(used), tuple(missing), len(everything) - len(used))


def of_comparison(folder: Path, name: str, comparison: Comparison, seeds: int) -> Evidence[Results]:
    """The results of an experiment that is one comparison; see `of_comparisons`."""
    found = of_comparisons(folder, name, [comparison], seeds)
    return Evidence(found.measured[0] if found.measured else None, found.records, found.missing, found.unused)


def of_arms(folder: Path, name: str, results: Results, arms: Sequence[str], seeds: int) -> Evidence[Results]:
    """The results of arms that are not tuned; measured once every arm has a seed."""
    everything = records_of(folder, name)
    if not everything:
        return unmeasured(folder, name)
    used = tuple(record for records in results.values() for record in records)
    missing = missing_seeds({arm: len(results.get(arm, ())) for arm in arms}, seeds)
    whole = all(results.get(arm) for arm in arms)
    return Evidence(results if whole else None, used, tuple(missing), len(everything) - len(used))


def of_seeds(folder: Path, name: str, seeds: int, kind: Callable[[RunRecord], str] | None = None) -> Evidence[Any]:
    """The newest records of an experiment whose configuration does not depend on what is compared, a seed each.

    Args:
        folder: of the records.
        name: the experiment's.
        seeds: how many there should be (of each kind).
        kind: what a record is of, where there are several; those that are there are counted.
    """
    everything = records_of(folder, name)
    if not everything:
        return unmeasured(folder, name)
    used = newest(everything)
    counts: dict[str, int] = {}
    for record in used:
        label = kind(record) if kind else name
        counts[label] = counts.get(label, 0) + 1
    missing = tuple(missing_seeds(counts, seeds))
    return Evidence(used, tuple(used), missing, len(everything) - len(used))


def missing_seeds(counts: Mapping[str, int], seeds: int) -> list[str]:
    """What to say of arms that have fewer seeds than they should: those without any first, then those with some."""
    phrases = []
    for count in range(seeds):
        arms = [arm for arm, of_arm in counts.items() if of_arm == count]
        if arms:
            shown = ", ".join(arms[:4]) + (f" and {len(arms) - 4} more" if len(arms) > 4 else "")
            phrases.append(f"{seeds - count} of {seeds} seeds of {shown}")
    return phrases
