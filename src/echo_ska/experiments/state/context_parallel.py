"""context-parallel: what a layer sends where a sequence is split over processes, and how far results are from one's.

One forward and backward pass of echo-1m, untrained, on random tokens, by 2 and by 4 processes (gloo, one thread each)
and by one, at 4,096 to 65,536 tokens. Bytes are counted where they are sent; beside them stands what attention of the
same width would send to gather all keys and values, by formula. Eight minutes on two cores that do other work as well.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from torch import Tensor

from echo_ska.experiments.state import context_parallel_report as report
from echo_ska.experiments.trials.pool import Job, Stage
from echo_ska.experiments.trials.recorded import RecordedRun, run_missing
from echo_ska.experiments.trials.studies import print_rows, study_files
from echo_ska.models import EchoConfig, EchoForCausalLM
from echo_ska.models.presets import preset
from echo_ska.parallel import ContextParallel, part_bounds, run_processes
from echo_ska.training import RunRecord, make_record

NAME = "context-parallel"
PRESET = "echo-1m"
LENGTHS = (65_536, 16_384, 4_096)
PROCESSES = (2, 4)


def run(console: Console, *, seeds: int | None = None, quick: bool = False) -> list[RunRecord]:
    """Run what is not recorded, then print the tables and draw the picture. `quick`: lengths a sixteenth of those.

    Raises:
        ValueError: more than one seed is asked for.
    """
    if seeds not in (None, 1):
        raise ValueError("context-parallel counts bytes, which no seed changes: leave --seeds out.")
    path, picture = study_files(NAME, quick)
    runs = [split_run(length // 16 if quick else length, world) for length in LENGTHS for world in PROCESSES]
    records = run_missing(console, NAME, runs, path, in_turn)
    print_rows(console, "Bytes that one layer sends, all processes together", report.byte_rows(records))
    print_rows(console, "Largest difference to one process", report.difference_rows(records))
    report.draw(records, picture)
    console.print(f"Records: {path}, picture: {picture}", markup=False, highlight=False, soft_wrap=True)
    return records


def in_turn(jobs: Sequence[Job], console: Console, *, on_result: Callable[[str, Any], None]) -> None:
    """Run jobs that start processes of their own one after the other, in this process."""
    for job in jobs:
        started = time.monotonic()
        on_result(job.name, job.function(None, **job.arguments))
        console.print(f"{job.name}: finished after {time.monotonic() - started:.0f} s", markup=False, highlight=False)


def split_run(length: int, world: int) -> RecordedRun:
    """The run of one length over so many processes."""
    job = Job(f"{length:,} tokens, {world} processes", run_split, {"length": length, "world": world})
    return RecordedRun(job, 0, _configuration(length, world))


def run_split(stage: Stage | None, *, length: int, world: int) -> dict[str, Any]:
    """Measure one length over `world` processes: a `RunRecord` as plain data."""
    started = time.perf_counter()
    found = run_processes(compare_with_one, world, length)
    config = preset(PRESET)
    figures = {
        "layers": _layers(config, found),
        "attention_bytes": gathered_bytes(config, length, world),
        "difference": {name: max(one["difference"][name] for one in found) for name in found[0]["difference"]},
    }
    seconds = time.perf_counter() - started
    return dataclasses.asdict(make_record(NAME, _configuration(length, world), figures, seed=0, seconds=seconds))


def gathered_bytes(config: EchoConfig, length: int, world: int) -> int:
    """What attention sends in one layer, forward, to give every process all keys and values in float32.

    Every process needs those of all others: (world - 1) times 2 H P numbers a token. Its backward pass sends as many.
    """
    assert config.head_dim is not None
    return (world - 1) * length * 2 * config.num_heads * config.head_dim * 4


def compare_with_one(length: int) -> dict[str, Any]:
    """In every process of a group: pass forward and backward over a part; the first does so over the whole as well.

    Returns:
        `traffic`: by phase and layer, messages and bytes that this process sent. `difference` to one process: of
        logits and of gradients, the largest over tensors, against the tensor's largest number; of the loss.
    """
    torch.manual_seed(0)
    config = preset(PRESET)
    model = EchoForCausalLM(config)
    ids = torch.randint(config.vocab_size, (1, length))
    rank, world = dist.get_rank(), dist.get_world_size()
    logits, loss = torch.empty(1, length, config.vocab_size), torch.zeros(())
    whole: list[Tensor] = []
    if rank == 0:
        output = model(input_ids=ids, labels=ids, use_cache=False)
        output.loss.backward()
        logits, loss = output.logits.detach(), output.loss.detach()
        whole = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
        model.zero_grad()
    dist.broadcast(logits, 0)
    dist.broadcast(loss, 0)
    with ContextParallel(model) as parallel:
        output = parallel(**parallel.split({"input_ids": ids, "labels": ids}))
        output.loss.backward()
        parallel.reduce_gradients()
        traffic = {phase: parallel.traffic.layers(phase) for phase in ("forward", "backward")}
        bounds = part_bounds(length, world, parallel.multiple_of)
    parts = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    own = logits[:, bounds[rank] : bounds[rank + 1]]
    differences = [_off(mine, its) for mine, its in zip(parts, whole, strict=rank == 0)]
    difference = {
        "logits": _off(output.logits.detach(), own),
        "loss": abs(float(output.loss.detach()) - float(loss)),
        "gradients": max(differences, default=0.0),
    }
    return {"traffic": traffic, "difference": difference}


def _layers(config: EchoConfig, found: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By kind of layer and phase: messages and bytes of one layer, all processes together, and of the busiest one.

    Raises:
        ArithmeticError: two layers of a kind sent different numbers of bytes.
    """
    layers: dict[str, dict[str, Any]] = {}
    for number, kind in enumerate(config.layer_types):
        name, phases = f"model.layers.{number}.mixer", {}
        for phase in ("forward", "backward"):
            sent = [one["traffic"][phase].get(name, (0, 0)) for one in found]
            phases[phase] = {
                "messages": sum(messages for messages, _ in sent),
                "bytes": sum(size for _, size in sent),
                "bytes_of_busiest_process": max(size for _, size in sent),
            }
        if layers.setdefault(kind, phases) != phases:
            raise ArithmeticError(f"layer {number} sent {phases}, another {kind} layer {layers[kind]}")
    return layers


def _off(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max().clamp_min(torch.finfo(wanted.dtype).tiny))


def _configuration(length: int, world: int) -> dict[str, Any]:
    return {"preset": PRESET, "dtype": "fp32", "tokens": length, "rows": 1, "processes": world, "backend": "gloo"}
