"""`echo-ska demo` and `echo-ska reproduce`: both only start what stands in `echo_ska.experiments`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rich.console import Console
from rich.text import Text

from echo_ska.experiments import EXPERIMENTS
from echo_ska.experiments.demo.run import run_demo
from echo_ska.training.records import write_json


def start_demo(output: Path, json_file: Path | None, console: Console) -> None:
    """Run the demo; see `run_demo`."""
    run_demo(output=output, json_path=json_file, console=console)


def start_experiment(
    name: str | None,
    seeds: int | None,
    quick: bool,
    text: Path | None,
    device: str,
    json_file: Path | None,
    console: Console,
) -> None:
    """Run an experiment, or list them all for None; ValueError if it is unknown."""
    if name is None:
        for known, experiment in EXPERIMENTS.items():
            reads = f" --text FOLDER: {experiment.text}." if experiment.text else ""
            console.print(Text(f"{known}: {experiment.description}{reads}"), soft_wrap=True)
        listed = {known: {"description": one.description, "text": one.text} for known, one in EXPERIMENTS.items()}
        write_json(json_file, {"experiments": listed})
        return
    if name not in EXPERIMENTS:
        raise ValueError(f"There is no experiment {name!r}: choose from {', '.join(EXPERIMENTS)}.")
    records = EXPERIMENTS[name].run(console, seeds=seeds, quick=quick, text=text, device=device)
    write_json(json_file, {"name": name, "records": [dataclasses.asdict(record) for record in records]})
