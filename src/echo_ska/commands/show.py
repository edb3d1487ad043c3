"""`echo-ska models` and `echo-ska memory`: what there is, and what it keeps while reading."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from echo_ska.evaluation.memory import MemoryComparison, StateBytes, compare_with_control, model_memory
from echo_ska.evaluation.memory_plot import draw_memory, format_bytes, format_tokens
from echo_ska.models.presets import PRESETS, preset
from echo_ska.training.records import write_json

SHORT, LONG = 1 << 10, 1 << 20
KINDS = {"mamba2": "Mamba-2", "ska": "SKA", "full_attention": "attention"}
"""What tables call the mixers that presets are made of."""

LEGEND = (
    "layers: Mamba-2, and SKA or softmax attention. The last four: bytes of one sequence's state, as stored: "
    "Mamba-2's and SKA's, the same at 1k and at 1M tokens, and attention's KV cache at both."
)


def show_models(json_file: Path | None, console: Console) -> None:
    """Print every preset with its parameters and its state after 1k and 1M tokens, by kind of mixer."""
    listed = []
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for heading in ("preset", "layers"):
        table.add_column(heading, no_wrap=True)
    for heading in ("parameters", "Mamba-2", "SKA", "KV at 1k", "KV at 1M"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, entry in PRESETS.items():
        config = preset(name)
        memory = model_memory(name, config, [SHORT, LONG], measured_up_to=0)
        listed.append({**memory.to_json(), "summary": entry.summary, "layer_types": config.layer_types})
        short, long = memory.rows
        if entry.family == name and table.row_count:
            table.add_row()
        table.add_row(
            name,
            "+".join(map(str, memory.layers.values())),
            f"{memory.parameters:,}",
            _size(short, "mamba2"),
            _size(short, "ska"),
            _size(short, "full_attention"),
            _size(long, "full_attention"),
        )
    console.print(table)
    console.print(Text(f"\n{LEGEND}"))
    write_json(json_file, {"models": listed})


def show_memory(names: Sequence[str], dtype: str, plot: Path | None, json_file: Path | None, console: Console) -> None:
    """Print, draw and write what presets keep beside their attention twins."""
    comparisons = [compare_with_control(name, dtype=dtype) for name in dict.fromkeys(names)]
    for comparison in comparisons:
        console.print(_memory_table(comparison))
    console.print(Text("* summed from a live state and equal to the layers' formula, which gives the other rows."))
    if plot is not None:
        draw_memory(comparisons, plot)
        console.print(Text(f"Drawn to {plot}."))
    write_json(json_file, {"dtype": dtype, "comparisons": [comparison.to_json() for comparison in comparisons]})


def _memory_table(comparison: MemoryComparison) -> Table:
    model, control = comparison.model, comparison.control
    title = Text(f"{model.name} against {control.name}", style="bold")
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    headings = [KINDS[kind] for kind in model.layers]
    for heading in ("tokens", *headings, "all", "KV cache", "twin's all", "all : all", "KV : SKA"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row, other, (tokens, whole, part) in zip(model.rows, control.rows, comparison.ratios(), strict=True):
        table.add_row(
            format_tokens(tokens) + ("*" if row.measured and other.measured else " "),
            *(_size(row, kind) for kind in model.layers),
            format_bytes(row.total),
            _size(other, "full_attention"),
            format_bytes(other.total),
            _times(whole),
            "" if part is None else _times(part),
        )
    return table


def _size(row: StateBytes, kind: str) -> str:
    return format_bytes(row.by_kind[kind]) if kind in row.by_kind else ""


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}x" if ratio >= 100 else f"{ratio:.1f}x"
