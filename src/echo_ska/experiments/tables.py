"""The tables in README.md and docs/, written from results/.

`python -m echo_ska.experiments.tables` fills every Markdown file of the checkout between the lines

    <!-- table: NAME -->
    <!-- end -->

and leaves the rest as it is; `--check` only says which files are out of date.
"""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from echo_ska.benchmarks import summary
from echo_ska.experiments import algebra_tables, trained_tables
from echo_ska.experiments.trials.figures import percent, short_number
from echo_ska.training import RunRecord
from echo_ska.training.records import read

RESULTS = Path("results")
NOTHING = "Not recorded yet.\n"
MARKED = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of a header and rows."""
    header, *body = rows
    lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *body)]
    return "\n".join(lines) + "\n"


def demo() -> str:
    """What the recorded demo printed: accuracy and state bytes by length."""
    result = json.loads((RESULTS / "demo.json").read_text(encoding="utf-8"))
    models = result["models"]
    header = ["tokens"]
    for model in models:
        header += [model["name"], "state, bytes"]
    rows = [header]
    for length in models[0]["accuracy"]:
        cells = [f"{int(length):,}"]
        for model in models:
            cells += [f"{percent(model['accuracy'][length])} %", f"{model['state_bytes'][length]:,}"]
        rows.append(cells)
    text, hardware = result["text"], result["hardware"]
    sizes = " / ".join(f"{model['parameters']:,}" for model in models)
    return (
        markdown(rows)
        + f"\nParameters: {sizes}; chance {100 * result['chance']:.1f} %. Text: {text['bits_per_byte_before']:.2f} "
        f"bits per byte on an unseen novel before training, {text['bits_per_byte_after']:.2f} after, with "
        f"{text['state_bytes']:,} bytes of state at its end. Measured in {result['seconds'] / 60:.1f} minutes on "
        f"{hardware['cores']} cores ({hardware['cpu']}), commit {str(result['commit'])[:8]}.\n"
    )


def demo_seeds() -> str:
    """Accuracy of every seed by length."""
    records = sorted(_records("demo-seeds"), key=lambda record: record.seed)
    lengths = list(records[0].figures["accuracy"])
    rows = [["seed", *(short_number(int(length)) for length in lengths)]]
    rows += [
        [str(record.seed), *(percent(record.figures["accuracy"][length]) for length in lengths)] for record in records
    ]
    rows.append(["answers a seed", *(f"{records[0].figures['answers'][length]:,}" for length in lengths)])
    return markdown(rows)


def demo_rates() -> str:
    """Accuracy by model and learning rate."""
    rows = [["model", "learning rate", "at 64", "at 4,096"]]
    for record in sorted(_records("demo-rates"), key=lambda r: (r.figures["model"], r.figures["learning_rate"])):
        figures = record.figures
        accuracies = [f"{percent(value)} %" for value in figures["accuracy"].values()]
        rows.append([figures["model"], f"{figures['learning_rate']:g}", *accuracies])
    return markdown(rows)


def recipe() -> str:
    """What each part of the recipe is worth."""
    from echo_ska.experiments.demo.recipe import table_rows

    return markdown(table_rows(sorted(_records("recipe"), key=lambda record: record.seed)))


def algebra(name: str) -> str:
    """A table of docs/algebra.md: an experiment on the algebra alone."""
    experiment, rows_of = algebra_tables.ROWS[name]
    if not (RESULTS / f"{experiment}.jsonl").exists():
        return NOTHING
    return markdown(rows_of(_records(experiment)))


def regression(by_pairs: bool) -> str:
    """In-context regression: distance to ridge along training, or distances and errors by pairs after it."""
    from echo_ska.experiments.regression import in_context_regression as experiment
    from echo_ska.experiments.regression.results import along_rows, pairs_rows

    path = RESULTS / f"{experiment.NAME}.jsonl"
    results = experiment.recorded_results(path) if path.exists() else {}
    if not results:
        return NOTHING
    return markdown(pairs_rows(results) if by_pairs else along_rows(results))


def memory() -> str:
    """State against the KV cache for the largest preset in bfloat16, measured while the table is made."""
    from echo_ska.evaluation.memory import compare_with_control
    from echo_ska.evaluation.memory_plot import format_bytes

    comparison = compare_with_control("echo-180m", lengths=[1 << 10, 1 << 13, 1 << 17, 1 << 20], dtype="bf16")
    rows = [["tokens", "echo-180m: SKA", "Mamba-2", "twin with attention: KV cache", "Mamba-2", "twin : Echo"]]
    for row, other, (tokens, ratio, _) in zip(
        comparison.model.rows, comparison.control.rows, comparison.ratios(), strict=True
    ):
        kinds = [row.by_kind["ska"], row.by_kind["mamba2"], other.by_kind["full_attention"], other.by_kind["mamba2"]]
        rows.append([f"{tokens:,}", *(format_bytes(size) for size in kinds), f"{ratio:,.1f}"])
    return markdown(rows)


def accuracy() -> str:
    """Error of float32 calls against float64 by kind of keys and ridge."""
    records = {r.configuration["tokens"]: r for r in _records("accuracy") if "seeds" in r.configuration}
    ridges = list(next(iter(records.values())).figures["output"]["random"])
    rows = [["tokens", "of", "keys", *(f"ridge {ridge}" for ridge in ridges)]]
    for tokens, record in sorted(records.items()):
        for part, kinds in record.figures.items():
            rows += [
                [f"{tokens:,}", f"{part}s", kind, *(f"{errors[ridge]:.0e}" for ridge in ridges)]
                for kind, errors in kinds.items()
            ]
    return markdown(rows)


def decoding_accuracy() -> str:
    """Error of decoding against a fresh float64 factorisation, the largest over kinds of keys, by tokens and ridge."""
    records = _records("decoding-accuracy")
    ridges = ("1", "0.25", "0.01", "0.001")
    rows = [["state", "tokens decoded", *(f"ridge {ridge}" for ridge in ridges)]]
    for record in records:
        figures = record.figures
        for place, tokens in enumerate(figures["tokens"]):
            worst = []
            for ridge in ridges:
                curves = [curve for name, curve in figures["errors"].items() if name.endswith(f", ridge {ridge}")]
                found = [curve[place] for curve in curves if curve[place] is not None]
                worst.append("fails" if len(found) < len(curves) else f"{max(found):.0e}")
            rows.append([record.configuration["variant"], f"{tokens:,}", *worst])
    return markdown(rows)


def trained(name: str) -> str:
    """A table of models that were trained: a name in `trained_tables.ROWS`."""
    rows = trained_tables.ROWS[name]()
    return markdown(rows) if rows else NOTHING


def bench(name: str, device: str) -> str:
    """A table of the newest full run of `echo-ska bench` on a device: a name in `summary.TABLES`, or "machine"."""
    path = RESULTS / "bench.jsonl"
    records = [record for record in read(path) if _is_full_run(record, device)] if path.exists() else []
    if not records:
        return NOTHING
    record = records[-1]
    if name == "machine":
        picture = RESULTS / summary.picture_name(record)
        shown = f"\n![time against length](../{picture})\n" if picture.exists() else ""
        left_out = "".join(f"- {sentence}.\n" for sentence in record.figures["notes"])
        return f"{summary.machine(record)}\n{shown}" + (f"\nLeft out:\n\n{left_out}" if left_out else "")
    rows = summary.rows_of(name, record)
    return markdown(rows) if rows else "Not measured in this run.\n"


def _is_full_run(record: RunRecord, device: str) -> bool:
    return record.configuration["name"] == "full" and record.configuration["device"] == device


def claims() -> str:
    """The verdict on every claim, with our figures."""
    from echo_ska.experiments.claims import CLAIMS, weigh

    rows = [["claim", "verdict", "what the records say"]]
    for claim in CLAIMS:
        verdict = weigh(claim, RESULTS).verdict
        name = f"{claim.key}. {claim.title}" if claim.key.isdigit() else claim.title
        rows.append([name, str(verdict.level), verdict.sentence.replace("|", "\\|")])
    return markdown(rows)


TABLES: dict[str, Callable[[], str]] = {
    "claims": claims,
    "demo": demo,
    "demo-seeds": demo_seeds,
    "demo-rates": demo_rates,
    "recipe": recipe,
    "regression": functools.partial(regression, by_pairs=False),
    "regression-pairs": functools.partial(regression, by_pairs=True),
    "memory": memory,
    "accuracy": accuracy,
    "decoding-accuracy": decoding_accuracy,
    **{name: functools.partial(algebra, name) for name in algebra_tables.ROWS},
    **{name: functools.partial(trained, name) for name in trained_tables.ROWS},
    **{f"bench-{name}": functools.partial(bench, name, "cpu") for name in ("machine", *summary.TABLES)},
    **{f"bench-gpu-{name}": functools.partial(bench, name, "cuda") for name in ("machine", *summary.TABLES)},
}


def fill(text: str) -> str:
    """`text` with every marked table written anew.

    Raises:
        ValueError: a mark names no known table.
    """

    def render(found: re.Match[str]) -> str:
        name = found["name"]
        if name not in TABLES:
            raise ValueError(f"there is no table {name!r}: choose from {', '.join(TABLES)}")
        return f"{found[1]}\n{TABLES[name]()}\n{found[3]}"

    return MARKED.sub(render, text)


def main(arguments: Sequence[str]) -> int:
    """Fill README.md and docs/*.md and return 0; with `--check` return how many are out of date, and leave them."""
    check = "--check" in arguments
    stale = 0
    for path in [Path("README.md"), *sorted(Path("docs").glob("*.md"))]:
        text = path.read_text(encoding="utf-8")
        filled = fill(text)
        if filled != text:
            stale += 1
            print(f"{path}: {'out of date' if check else 'written'}")
            if not check:
                path.write_text(filled, encoding="utf-8")
    return stale if check else 0


def _records(name: str) -> list[RunRecord]:
    """The newest record of each configuration and seed."""
    newest: dict[Any, RunRecord] = {}
    for record in read(RESULTS / f"{name}.jsonl"):
        newest[json.dumps([record.configuration, record.seed], sort_keys=True)] = record
    return list(newest.values())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
