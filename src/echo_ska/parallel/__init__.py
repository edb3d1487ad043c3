"""One sequence over several processes: context parallelism by sums of constant size (docs/context-parallel.md)."""

from echo_ska.parallel.context import ContextParallel
from echo_ska.parallel.processes import run_processes
from echo_ska.parallel.reading import read_context_parallel
from echo_ska.parallel.split import packed_bounds, part_bounds, split_sequence
from echo_ska.parallel.traffic import Traffic

__all__ = [
    "ContextParallel",
    "Traffic",
    "packed_bounds",
    "part_bounds",
    "read_context_parallel",
    "run_processes",
    "split_sequence",
]
