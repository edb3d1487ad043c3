"""What the demo prints and draws, from the figures of its run alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator
from rich.console import Console
from rich.table import Table

from echo_ska.experiments.trials.figures import COLOURS, MARKERS, label_lines, length_axis, percent, save, short_bytes
from echo_ska.training.reporter import format_seconds


def print_start(console: Console, jobs: int, cores: int) -> None:
    """What is about to happen."""
    _say(console, f"{jobs} models are trained from scratch, {min(jobs, cores)} at a time on {cores} cores.")


def print_report(console: Console, result: dict[str, Any]) -> None:
    """The recall tables and the text part of a demo's `result` (see `run_demo`)."""
    models, training_length = result["models"], result["training_length"]
    titles = (f"Answers right after training on {training_length} tokens", "Bytes of state kept for one sequence")
    for title, figure, shown in zip(titles, ("accuracy", "state_bytes"), (_share, "{:,}".format), strict=True):
        table = Table(title=title)
        table.add_column("tokens", justify="right")
        for model in models:
            table.add_column(model["name"], justify="right")
        for length in models[0][figure]:
            values = (shown(model[figure][length]) for model in models)
            table.add_row(f"{int(length):,} ({int(length) // training_length}x)", *values)
        console.print()
        console.print(table)
    sizes = ", ".join(f"{model['name']} {model['parameters']:,}" for model in models)
    answers = list(result["answers"].values())
    _say(
        console,
        f"Parameters: {sizes}. Chance: {100 * result['chance']:.1f} %. Each accuracy is over {min(answers):,} to "
        f"{max(answers):,} answers. Bytes are one sequence's whole state, checked against the live cache.",
    )
    _print_text(console, result["text"])
    _say(console, f"\nAll of this was measured in this run, in {format_seconds(result['seconds'])}.")


def _share(value: float) -> str:
    return f"{percent(value)} %"


def _print_text(console: Console, text: dict[str, Any]) -> None:
    before, after = text["bits_per_byte_before"], text["bits_per_byte_after"]
    _say(
        console,
        f"\nText: an Echo of {text['parameters']:,} parameters read {text['training_bytes']:,} bytes of "
        f"{text['trained_on']} in {format_seconds(text['training_seconds'])}.",
    )
    _say(console, f"On {text['read']}, which it had never seen:")
    _say(console, f"  {before:.3f} bits per byte before training (over its first {text['bytes_before']:,} bytes)")
    _say(console, f"  {after:.3f} bits per byte after (over {text['bytes_after']:,} bytes)")
    _say(
        console,
        f"  state: {text['state_bytes_after_first_segment']:,} bytes after the first {text['segment_bytes']:,} bytes, "
        f"{text['state_bytes']:,} after the last",
    )
    _say(console, f"A sample of its writing, after {text['prompt']!r}:")
    _say(console, text["prompt"] + text["sample"])


def draw(result: dict[str, Any], path: Path) -> None:
    """Accuracy and bytes of state against length, as a PNG."""
    models = result["models"]
    lengths = [int(length) for length in models[0]["accuracy"]]
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = {model["name"]: COLOURS.get(model["name"], "black") for model in models}

    for model in models:
        look: dict[str, Any] = {"color": colours[model["name"]], "marker": MARKERS.get(model["name"], "o")}
        look |= {"linewidth": 2, "markersize": 5, "clip_on": False}
        left.plot(lengths, [100 * model["accuracy"][str(length)] for length in lengths], **look)
        right.plot(lengths, [model["state_bytes"][str(length)] for length in lengths], **look)

    chance = 100 * result["chance"]
    left.axhline(chance, color="black", linewidth=1, linestyle=(0, (4, 3)))
    left.annotate("chance", (lengths[0], chance), xytext=(0, 3), textcoords="offset points", fontsize=9)
    left.set_ylim(0, 100)
    left.set_title(f"Answers right, %, after training on {result['training_length']} tokens", loc="left", fontsize=11)
    right.set_yscale("log")
    right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short_bytes(value)))
    right.yaxis.set_minor_locator(NullLocator())
    right.set_title("State kept for one sequence", loc="left", fontsize=11)
    for axes in (left, right):
        length_axis(axes, lengths)
        axes.set_xlim(lengths[0] / 1.1, lengths[-1])
    figure.draw_without_rendering()  # settles the axes' places, which the labels need
    last = str(lengths[-1])
    label_lines(left, {m["name"]: (lengths[-1], 100 * m["accuracy"][last]) for m in models}, colours)
    with_bytes = {model["name"]: f"{model['name']}  {short_bytes(model['state_bytes'][last])}" for model in models}
    ends = {with_bytes[model["name"]]: (lengths[-1], model["state_bytes"][last]) for model in models}
    label_lines(right, ends, {with_bytes[name]: colour for name, colour in colours.items()})
    save(figure, path)


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False)
