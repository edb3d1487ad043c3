"""What two processes do together, started by torchrun: `together.py FOLDER STRATEGY...` (or `FOLDER restarted`)."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from tiny_model import CountingData, build, build_echo, config
from torch import Tensor, nn

from echo_ska.nn.mixer import KEPT_IN_FLOAT32
from echo_ska.training import ScaleConfig, train
from echo_ska.training.data import rows_of_part
from echo_ska.training.processes import start_processes

STEPS = 8
RANK = int(os.environ.get("RANK", "0"))


class UnevenData:
    """Sequences that count upwards; so few labels, in so few rows, that a part of a batch may have none."""

    def __init__(self, vocab_size: int = 13) -> None:
        self.vocab_size = vocab_size

    def batch(self, step: int, part: int = 0, parts: int = 1) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(step)
        tokens = (torch.randint(self.vocab_size, (4, 1), generator=generator) + torch.arange(12)) % self.vocab_size
        labels = torch.where(torch.rand(4, 12, generator=generator) < 0.2, tokens, -100)
        if step % 3 == 1:
            labels[1::2] = -100  # all that the second of two processes has
        labels[0, -1] = tokens[0, -1]
        return rows_of_part({"input_ids": tokens, "labels": labels}, part, parts)

    def describe(self) -> dict[str, Any]:
        return {"task": "uneven"}


class Result(NamedTuple):
    loss: Tensor
    logits: Tensor


class Unreached(nn.Module):
    """The tiny model with a parameter that no batch reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = build(dropout=0.0)
        self.idle = nn.Parameter(torch.ones(3))

    def forward(self, input_ids: Tensor, labels: Tensor) -> Any:
        return self.inner(input_ids, labels)


class Raises(nn.Module):
    """It raises at step 6 that its numbers are not finite, in the second process alone, as compiled layers do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.calls = build(dropout=0.0), 0

    def forward(self, input_ids: Tensor, labels: Tensor) -> Any:
        self.calls += 1
        if self.calls == 7 and RANK == 1:
            raise FloatingPointError("not finite")
        return self.inner(input_ids, labels)


class GoesWrong(nn.Module):
    """What `spoil` does to its output at step 6, in the second process alone."""

    def __init__(self, spoil: Callable[[Any], None]) -> None:
        super().__init__()
        self.inner, self.calls, self.spoil = build(dropout=0.0), 0, spoil

    def forward(self, input_ids: Tensor, labels: Tensor) -> Any:
        output = self.inner(input_ids, labels)
        self.calls += 1
        if self.calls == 7 and RANK == 1:
            self.spoil(output)
        return output


def no_number(output: Any) -> None:
    """The loss is none."""
    output.loss = output.loss * float("nan")


def no_finite_gradient(output: Any) -> None:
    """The loss is finite, and its gradient is not."""
    output.loss.register_hook(lambda gradient: gradient * float("inf"))


def build_spoiled(rank: int = 1) -> nn.Module:
    """An Echo that reads what is no number at step 6, in one process alone: a layer would raise, others wait for it."""
    model, calls = build_echo(), itertools.count()

    def spoil(module: nn.Module, given: Any, read: Tensor) -> Tensor:
        return read * float("nan") if next(calls) == 6 and rank == RANK else read

    model.model.embed_tokens.register_forward_hook(spoil)
    return model


def build_mixed() -> nn.Module:
    """An Echo in float64 but for what steers exponentials."""
    model = build_echo()
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2] not in KEPT_IN_FLOAT32:
            parameter.data = parameter.data.double()
    return model


MODELS = {
    "echo": build_echo,  # an odd number of tokens, which two processes cannot halve
    "tiny": lambda: build(dropout=0.0),
    "dropout": build,
    "unreached": Unreached,
    "diverges": lambda: GoesWrong(no_number),
    "explodes": lambda: GoesWrong(no_finite_gradient),
    "raises": Raises,
    "spoiled": build_spoiled,
    "mixed": build_mixed,
}


class Kept:
    """An observer that keeps the losses."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.accuracies: list[float] = []
        self.evaluations: list[Any] = []

    def log(self, entry: dict[str, Any]) -> None:
        if "evaluation" in entry:
            self.evaluations.append(entry["evaluation"])
        else:
            self.losses.append(entry["loss"])
            self.norms.append(entry["gradient_norm"])
            self.accuracies.append(entry["accuracy"])


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten().double() for parameter in model.parameters()])


def curve(
    model: str = "echo",
    strategy: str = "auto",
    directory: Path | None = None,
    steps: int = STEPS,
    data: Any = None,
    evaluated: bool = False,
    settings: dict[str, Any] | None = None,
    **scale: Any,
) -> dict[str, Any]:
    """A training's losses, gradient norms, evaluations and final weights."""
    trained, kept = MODELS[model](), Kept()

    def evaluate(whole: nn.Module, step: int) -> dict[str, float]:
        torch.rand(3)
        with torch.no_grad():
            batch = UnevenData().batch(100)
            return {"held_out": float(whole(**batch).loss)}

    train(
        trained,
        data or UnevenData(),
        dataclasses.replace(config(steps, log_every=1, checkpoint_every=4), **settings or {}),
        scale=ScaleConfig(strategy=strategy, **scale),
        directory=directory,
        observers=[kept],
        evaluate=evaluate if evaluated else None,
    )
    return {
        "losses": kept.losses,
        "norms": kept.norms,
        "accuracies": kept.accuracies,
        "evaluations": kept.evaluations,
        "weights": weights(trained).tolist(),
    }


def failed(**arguments: Any) -> str:
    """The sentence that a training ends with."""
    try:
        curve(**arguments)
    except (ValueError, OSError, FloatingPointError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


class FailsOnOne(UnevenData):
    """One process cannot draw its part."""

    def batch(self, step: int, part: int = 0, parts: int = 1) -> dict[str, Tensor]:
        if part == 1 and step == 2:
            raise ValueError("part 1 has no text")
        return super().batch(step, part, parts)


class WholeBatches(CountingData):
    """A source of one's own, which knows nothing of parts."""


def full_disk(folder: Path, strategy: str) -> str:
    """No file of the second process (of the first, where it alone writes) may be longer than 4,000 bytes."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if (0 if strategy == "ddp" else 1) == RANK:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
    try:
        return failed(strategy=strategy, directory=folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def stopped_half_way(run: Path, copy: Path) -> Path:
    """A copy of a finished run as it was after its first checkpoint, made by the first process."""
    if RANK == 0:
        shutil.copytree(run, copy)
        shutil.rmtree(copy / "checkpoints" / "step-000008")
    return copy


def compare(strategy: str, other: str, folder: Path) -> dict[str, Any]:
    """Everything of one strategy; `other` is what its checkpoints are handed to."""
    results: dict[str, Any] = {}
    for model in ("echo", "unreached"):
        results[model] = curve(model, strategy, evaluated=True)
    results["accumulate"] = curve(strategy=strategy, accumulate=2)
    results["checkpoint activations"] = curve(strategy=strategy, checkpoint_activations=True)
    results["skip logits"] = curve(strategy=strategy, skip_logits=True, evaluated=True)
    results["bf16"] = curve(strategy=strategy, settings={"precision": "bf16"}, directory=folder / f"{strategy}-bf16")
    kept = folder / strategy
    results["kept"] = curve(strategy=strategy, directory=kept)
    results["resumed"] = curve(strategy=strategy, directory=stopped_half_way(kept, folder / f"{strategy}-again"))
    results["from one"] = curve(
        strategy=strategy, directory=stopped_half_way(folder / "one", folder / f"one-{strategy}")
    )
    results["to other"] = curve(strategy=other, directory=stopped_half_way(kept, folder / f"{strategy}-{other}"))
    stopped_half_way(kept, folder / f"{strategy}-one")
    results["batch"] = failed(strategy=strategy, accumulate=3)
    results["settings"] = failed(strategy=strategy, directory=kept, settings={"learning_rate": 1e-4})
    results["one fails"] = failed(strategy=strategy, data=FailsOnOne())
    results["diverges"] = failed(model="diverges", strategy=strategy, directory=folder / f"{strategy}-diverges")
    results["explodes"] = failed(model="explodes", strategy=strategy, directory=folder / f"{strategy}-explodes")
    results["spoiled"] = failed(model="spoiled", strategy=strategy, directory=folder / f"{strategy}-spoiled")
    if strategy != "fsdp":  # whose processes wait for each other in a forward pass
        results["raises"] = failed(model="raises", strategy=strategy, directory=folder / f"{strategy}-raises")
    full = stopped_half_way(kept, folder / f"{strategy}-full")
    results["full"] = full_disk(full, strategy)
    results["after full"] = curve(strategy=strategy, directory=full)
    return results


class PackedData(UnevenData):
    """The rows of `UnevenData` behind one another, each a sequence of its own, and cut once more at its fifth token."""

    def batch(self, step: int, part: int = 0, parts: int = 1) -> dict[str, Tensor]:
        rows = super().batch(step, part, parts)
        cuts = sorted([*range(0, rows["labels"].numel(), 12), *range(5, rows["labels"].numel(), 12)])
        labels = rows["labels"].flatten()
        labels[cuts] = -100
        return {
            "input_ids": rows["input_ids"].flatten()[None],
            "labels": labels[None],
            "cu_seqlens": torch.tensor([*cuts, len(labels)]),
        }


def context(folder: Path) -> dict[str, Any]:
    """What processes do that have a part of every sequence each."""
    results: dict[str, Any] = {}
    kept = folder / "context"
    results["echo"] = curve(strategy="context", directory=kept, evaluated=True)
    results["resumed"] = curve(
        strategy="context", directory=stopped_half_way(kept, folder / "context-again"), evaluated=True
    )
    results["from one"] = curve(strategy="context", directory=stopped_half_way(folder / "one", folder / "one-context"))
    results["to ddp"] = curve(directory=stopped_half_way(kept, folder / "context-ddp"))
    results["accumulate"] = curve(strategy="context", accumulate=2)
    results["packed"] = curve(strategy="context", data=PackedData())
    results["skip logits"] = curve(strategy="context", skip_logits=True)
    results["checkpoint activations"] = curve(strategy="context", checkpoint_activations=True)
    results["another model"] = failed(model="tiny", strategy="context")
    results["short"] = failed(strategy="context", data=ShortData())
    results["spoiled"] = failed(model="spoiled", strategy="context")
    results["spoiled, recomputed"] = failed(model="spoiled", strategy="context", checkpoint_activations=True)
    trained = build_echo()
    MODELS["mine"] = lambda: trained
    results["spike"] = failed(
        model="mine", strategy="context", spike_factor=1.0001, spike_window=1, settings={"learning_rate": 3.0}
    )
    results["given back"] = all(mixer.exchange is None for mixer in trained.model.mixers)
    return results


class ShortData(UnevenData):
    """Sequences too short to be cut."""

    def batch(self, step: int, part: int = 0, parts: int = 1) -> dict[str, Tensor]:
        return {key: value[:, -4:] for key, value in super().batch(step, part, parts).items()}


class SlowData(UnevenData):
    """So slow that a process can be killed in the middle."""

    def batch(self, step: int, part: int = 0, parts: int = 1) -> dict[str, Tensor]:
        time.sleep(0.02)
        return super().batch(step, part, parts)


def restarted(folder: Path) -> None:
    """A run of 40 steps, which says who carries it out."""
    (folder / f"pid-{RANK}-{os.environ.get('TORCHELASTIC_RESTART_COUNT')}").write_text(str(os.getpid()))
    curve(data=SlowData(), directory=folder / "run", steps=40)


def limits() -> dict[str, float]:
    """Seconds that each group of processes waits."""
    with start_processes(torch.device("cpu"), ScaleConfig()) as (_, processes):
        groups = {"default": dist.group.WORLD, "control": processes._control}
        return {
            name: group._get_backend(torch.device("cpu")).options._timeout.total_seconds()
            for name, group in groups.items()
        }


def compiled_spoiled(folder: Path) -> str:
    """As "spoiled", compiled but not lowered by Inductor: the layers of one process raise."""
    compiled = torch.compile
    torch.compile = functools.partial(compiled, backend="aot_eager")
    try:
        return failed(model="spoiled", directory=folder / "compiled", compile=True)
    finally:
        torch.compile = compiled


def joined() -> bool:
    """Whether the first process goes on only when the second, which is slow, has made its groups."""
    made, new_group = time.time(), dist.new_group

    def slow(*arguments: Any, **settings: Any) -> Any:
        nonlocal made
        group = new_group(*arguments, **settings)
        time.sleep(RANK)
        made = time.time()
        return group

    dist.new_group = slow
    try:
        with start_processes(torch.device("cpu"), ScaleConfig()) as (_, processes):
            went_on = time.time()
            return min(processes.gather(went_on)) >= max(processes.gather(made))
    finally:
        dist.new_group = new_group


OTHER = {"ddp": "fsdp", "fsdp": "ddp", "deepspeed": "deepspeed"}


def main(folder: Path, strategies: list[str]) -> None:
    results = {}
    for strategy in strategies:
        results[strategy] = compare(strategy, OTHER[strategy], folder)
    results["dropout"] = curve("dropout", strategies[0])
    if "ddp" in strategies:
        results["context"] = context(folder)
    if "fsdp" in strategies:
        results["mixed"] = failed(model="mixed", strategy="fsdp")
    results["whole batches"] = failed(model="tiny", strategy=strategies[0], data=WholeBatches())
    if "ddp" in strategies:
        results["limits"] = limits()
        results["joined"] = joined()
        results["compiled"] = compiled_spoiled(folder)
        curve(data=SlowData(), directory=folder / "undisturbed", steps=40)
    (folder / f"results-{RANK}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[2:] == ["restarted"]:
        restarted(Path(sys.argv[1]))
    else:
        main(Path(sys.argv[1]), sys.argv[2:])
