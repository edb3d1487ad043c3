"""Claim 9: a language model. The paper's own, of 180M parameters, is out of reach here; ours compares small ones."""

from __future__ import annotations

from pathlib import Path

from echo_ska.experiments.claims.claim import Claim, Criterion, Evidence, Finding, Table
from echo_ska.experiments.claims.evidence import file_of, of_comparisons, unmeasured
from echo_ska.experiments.language import language_model as experiment
from echo_ska.experiments.language.language_model_figure import draw
from echo_ska.experiments.language.language_model_results import (
    ECHO,
    LENGTH,
    context_rows,
    lead,
    mean,
    rows,
    scored_contexts,
)
from echo_ska.experiments.trials.comparison import Results
from echo_ska.experiments.trials.texts import TEST

EXACT = 1e-4
"""Bits per byte by which readings of one text may differ."""


def gather(folder: Path) -> Evidence[Results]:
    """The comparison on the texts of the newest record."""
    path = file_of(folder, experiment.NAME)
    comparison = experiment.recorded_comparison(path)
    if comparison is None:
        return unmeasured(folder, experiment.NAME)
    found = of_comparisons(folder, experiment.NAME, [comparison], experiment.SEEDS)
    return Evidence(found.measured[0] if found.measured else None, found.records, found.missing, found.unused)


def _ahead(results: Results, context: int) -> str:
    difference, best = lead(results, TEST, context)
    return f"{difference:+.3f} against {best}"


def _no_worse(results: Results) -> Finding:
    return Finding(lead(results, TEST, LENGTH)[0] >= 0, _ahead(results, LENGTH))


def _grows(results: Results) -> Finding:
    longest = scored_contexts(results)[-1]
    grown = lead(results, TEST, longest)[0] > lead(results, TEST, LENGTH)[0]
    return Finding(grown, f"{_ahead(results, LENGTH)} at {LENGTH:,}, {_ahead(results, longest)} at {longest:,}")


def _context_helps(results: Results) -> Finding:
    longest = scored_contexts(results)[-1]
    near, far = (mean(results, ECHO, TEST, context) for context in (LENGTH, longest))
    return Finding(far < near, f"{near:.3f} at {LENGTH:,}, {far:.3f} at {longest:,}")


def _reads_in_any_way(results: Results) -> Finding | None:
    found = next((r.figures["segments"] for r in results[ECHO] if "segments" in r.figures), None)
    if found is None:
        return None
    apart = max(max(found[name].values()) - min(found[name].values()) for name in ("whole", "first"))
    states = {
        size for r in results[ECHO] for text in r.figures.get("whole", {}).values() for size in text["state_bytes"]
    }
    sizes = "; state of one size" if len(states) == 1 else f"; states of {min(states):,} to {max(states):,} bytes"
    return Finding(apart <= EXACT and len(states) == 1, f"at most {apart:.1e} apart{sizes}")


CLAIM: Claim[Results] = Claim(
    key="9",
    title="A language model",
    statement="180M parameters after 10B tokens of FineWeb-Edu: perplexity 16.48, HellaSwag 44.3, PIQA 70.9, ARC-E "
    "58.8, ARC-C 34.2, WinoGrande 55.4, LAMBADA 39.8 (accuracies in %). Judged here is what can be "
    "compared at a size that two CPU cores train: of models with equal parameters, text and tuned rates, Echo predicts "
    "unseen authors no worse than the best, and gains on the others as the context grows beyond the training's.",
    source="the paper (arXiv 2605.06997); the comparison is ours",
    commands=("echo-ska reproduce language-model --text FOLDER",),
    gather=gather,
    criteria=(
        Criterion(
            f"Bits per byte of unseen authors at the training's context, {LENGTH} bytes: Echo is not above the best "
            "control (mean over seeds)",
            _no_worse,
            "not comparable: perplexity 16.48, 180M parameters, 10B tokens",
        ),
        Criterion(f"Its lead over the best control is larger at the longest context than at {LENGTH} bytes", _grows),
        Criterion(f"Its bits per byte are lower at the longest context than at {LENGTH} bytes", _context_helps),
        Criterion(
            f"A whole novel in segments of any length, and its beginning byte by byte, give the same bits per byte "
            f"within {EXACT:g}, in a state of one size",
            _reads_in_any_way,
        ),
    ),
    summary=lambda r: (
        f"Unseen authors at {LENGTH} bytes of context: Echo {mean(r, ECHO, TEST, LENGTH):.3f} bits per byte, "
        f"{_ahead(r, LENGTH)}; at {scored_contexts(r)[-1]:,} bytes {mean(r, ECHO, TEST, scored_contexts(r)[-1]):.3f}, "
        f"{_ahead(r, scored_contexts(r)[-1])}."
    ),
    tables=lambda r: [
        Table("Bits per byte, mean over seeds (range)", rows(r)),
        Table("Unseen authors, bits per byte by bytes of context", context_rows(r)),
    ],
    draw=draw,
    picture="Bits per byte against context for every text, a line a model; the seeds on unseen authors as dots.",
    caveats=(
        "The paper's figures: 1.1M parameters on 7.4 MB of novels, byte by byte, are not 180M on 10B tokens.",
        "The benchmarks: models of this size answer them by chance (echo-ska eval asks them of any model).",
    ),
)
