"""state-bytes: what Echo keeps while it reads, by kind of layer, against the formula and its attention twin's KV cache.

Every preset, in float32 and in bfloat16, from 1,024 to 1,048,576 tokens: summed from a live cache up to 2,048 tokens,
counted beyond. And what the published "77 KB against 384 MB" counts. Nothing is drawn at random. About ten seconds a
preset on one core.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from echo_ska.evaluation.memory import DTYPES, LENGTHS, MEASURED_UP_TO, MemoryComparison, compare_with_control
from echo_ska.experiments.state import state_bytes_report as report
from echo_ska.experiments.trials.pool import Job, Stage
from echo_ska.experiments.trials.recorded import RecordedRun, run_missing
from echo_ska.experiments.trials.studies import print_rows, study_files
from echo_ska.models import EchoConfig
from echo_ska.models.presets import build_on_meta, preset
from echo_ska.nn import SpectralKoopmanAttention
from echo_ska.training import RunRecord, make_record

NAME = "state-bytes"
ECHOES = ("echo-1m", "echo-50m", "echo-180m")
"""The paper's sizes."""


@dataclass(frozen=True)
class PaperFigure:
    """The published comparison: SKA's state at one rank against a KV cache in half precision.

    Attributes:
        rank, head_dim, layers: of the SKA state that "77 KB" counts: the 50M model's rank.
        heads: that its 180M model has a layer, at `model_rank`.
        tokens, hidden_size: of the KV cache.
    """

    rank: int = 56
    head_dim: int = 64
    layers: int = 2
    heads: int = 12
    model_rank: int = 48
    tokens: int = 131_072
    hidden_size: int = 768

    def head_numbers(self, rank: int) -> int:
        """2 r^2 + P r + r + 1."""
        return formula_numbers(rank, self.head_dim)

    def ladder(self) -> dict[str, int]:
        """Bytes of SKA's state, the sums in float32, by what is counted; then of the cache."""
        one = 4 * self.head_numbers(self.rank)
        whole = 4 * self.head_numbers(self.model_rank) * self.heads
        cache = 2 * 2 * self.hidden_size * self.tokens
        return {
            "one head, r = 56": one,
            "one head in two layers (the 77 KB)": one * self.layers,
            "all 12 heads, r = 48, two layers": whole * self.layers,
            "KV cache, one layer (the 384 MB)": cache,
            "KV cache, two layers": cache * self.layers,
        }


def formula_numbers(rank: int, head_dim: int) -> int:
    """Numbers of one head's state as the paper counts them: G, M, C, the last key, and a count."""
    return 2 * rank * rank + head_dim * rank + rank + 1


def run(console: Console, *, seeds: int | None = None, quick: bool = False) -> list[RunRecord]:
    """Run what is not recorded, then print the tables and draw the picture. `quick`: the smallest preset alone.

    Raises:
        ValueError: more than one seed is asked for.
        JobError: a live cache and the mixers' own count disagree.
    """
    if seeds not in (None, 1):
        raise ValueError("state-bytes draws nothing at random: leave --seeds out.")
    path, picture = study_files(NAME, quick)
    names = ECHOES[:1] if quick else ECHOES
    runs = [preset_run(name, dtype) for name in reversed(names) for dtype in DTYPES]
    records = run_missing(console, NAME, runs, path)
    print_rows(console, "Bytes of one sequence's state", report.length_rows(records))
    print_rows(console, "One SKA layer's state, part by part", report.part_rows(records))
    print_rows(console, "What 77 KB against 384 MB counts", report.ladder_rows(PaperFigure().ladder(), records))
    report.draw(records, PaperFigure().ladder(), picture)
    console.print(f"Records: {path}, picture: {picture}", markup=False, highlight=False, soft_wrap=True)
    return records


def preset_run(name: str, dtype: str, lengths: tuple[int, ...] = LENGTHS) -> RecordedRun:
    """The run of one preset in one dtype."""
    arguments = {"name": name, "dtype": dtype, "lengths": lengths}
    return RecordedRun(Job(f"{name} {dtype}", run_preset, arguments), 0, _configuration(name, dtype, lengths))


def run_preset(stage: Stage, *, name: str, dtype: str, lengths: tuple[int, ...]) -> dict[str, Any]:
    """Measure and count one preset and its twin: a `RunRecord` as plain data."""
    started = time.perf_counter()
    comparison = compare_with_control(name, lengths, dtype=dtype)
    stage("reading").update(1, 1, {})
    figures = comparison.to_json() | {"ska": ska_parts(preset(name), dtype, comparison)}
    configuration = _configuration(name, dtype, lengths)
    return dataclasses.asdict(make_record(NAME, configuration, figures, seed=0, seconds=time.perf_counter() - started))


def ska_parts(config: EchoConfig, dtype: str, comparison: MemoryComparison) -> dict[str, Any]:
    """One SKA layer's state, tensor by tensor, held to the bytes that the live cache had.

    Returns:
        `heads`, `rank`, `head_dim`, `layers`; `formula_numbers` of a head; `bytes` by the name of a part.

    Raises:
        ArithmeticError: the parts do not add up to the bytes of the model's SKA layers.
    """
    model = build_on_meta(config).to(DTYPES[dtype])
    layers = [mixer for mixer in model.model.mixers if isinstance(mixer, SpectralKoopmanAttention)]
    tensors = layers[0].init_state(1, device="meta").tensors()
    parts = {name.rpartition(".")[2]: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    for row in comparison.model.rows:
        if row.by_kind["ska"] != len(layers) * sum(parts.values()):
            raise ArithmeticError(
                f"{len(layers)} SKA layers have {row.by_kind['ska']:,} bytes after {row.tokens:,} tokens, and the "
                f"parts of one have {sum(parts.values()):,}: one of them is wrong"
            )
    layer = layers[0]
    sizes = {"heads": layer.num_heads, "rank": layer.rank, "head_dim": layer.head_dim, "layers": len(layers)}
    return sizes | {"formula_numbers": formula_numbers(layer.rank, layer.head_dim), "bytes": parts}


def _configuration(name: str, dtype: str, lengths: tuple[int, ...]) -> dict[str, Any]:
    return {"preset": name, "dtype": dtype, "lengths": list(lengths), "measured_up_to": MEASURED_UP_TO}
