"""Where the records behind a verdict come from: machines, dates, commits, seeds, cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from echo_ska.training import RunRecord


def provenance(records: Sequence[RunRecord]) -> list[tuple[str, str]]:
    """Terms and what they come to over `records`; none where there are none."""
    if not records:
        return []
    seeds = sorted({record.seed for record in records})
    dates = sorted(record.date[:10] for record in records if record.date)
    found = {
        "runs": str(len(records)),
        "seeds": _numbers(seeds),
        "cost": f"{_time(sum(record.seconds for record in records))}, all runs one after another",
        "hardware": "; ".join(_distinct(_machine(record) for record in records)),
        "dates": "not recorded" if not dates else dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}",
        "commits": ", ".join(_distinct(_commit(record) for record in records)),
        "versions": "; ".join(_distinct(_versions(record) for record in records)),
    }
    return list(found.items())


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def _time(seconds: float) -> str:
    """Three digits at most: 42 s, 18.0 minutes, 3.7 hours."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"


def _numbers(numbers: Sequence[int]) -> str:
    """0 to 9, or 0, 2, 5."""
    whole = numbers == list(range(numbers[0], numbers[-1] + 1)) and len(numbers) > 2
    return f"{numbers[0]} to {numbers[-1]}" if whole else ", ".join(map(str, numbers))


def _machine(record: RunRecord) -> str:
    hardware, training = record.hardware, record.configuration.get("training") or {}
    on_cpu = isinstance(training, dict) and training.get("device") == "cpu"  # on a machine that has a GPU besides
    where = (None if on_cpu else hardware.get("gpu")) or hardware.get("cpu") or "unknown"
    return f"{where}, {hardware.get('threads')} of {hardware.get('cores')} cores"


def _commit(record: RunRecord) -> str:
    if record.commit is None:
        return "outside a checkout"
    return record.commit[:8] + (" with changes" if record.dirty else "")


def _versions(record: RunRecord) -> str:
    return f"torch {record.versions.get('torch')}, Python {record.versions.get('python')}"
