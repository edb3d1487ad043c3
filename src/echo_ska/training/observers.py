"""Curves of a training in TensorBoard and Weights & Biases: observers, which are told every line of its log.

A run that was killed and resumed does some steps again. In its curves they stand once: TensorBoard is told to forget
the first ones, and Weights & Biases, which cannot, is not told the second ones (which are the same).
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from echo_ska.training.checkpoint import list_checkpoints
from echo_ska.training.records import write_json
from echo_ska.training.throughput import Throughput

TENSORBOARD, WANDB = "tensorboard", "wandb"
"""Where their files are kept, in a training's folder."""
EVALUATION = "evaluation"
"""What an entry holds that is not of a step's training but of what follows some of them."""


class _Observer(Protocol):
    def log(self, entry: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class TensorBoardObserver:
    """Writes TensorBoard's event files; see them by `tensorboard --logdir DIRECTORY`.

    Args:
        directory: of the event files, made if it is not there.
        steps_done: by the checkpoint that the training goes on from; what an earlier run has written of later ones is
            forgotten.

    Raises:
        ValueError: TensorBoard is not installed.
    """

    def __init__(self, directory: str | Path, steps_done: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError("TensorBoard is not installed: pip install 'echo-ska[tracking]'") from error
        self._writer: Any = SummaryWriter(str(directory), purge_step=steps_done + 1)

    def log(self, entry: dict[str, Any]) -> None:
        """Write an entry's numbers, as `training/loss` or `evaluation/bits_per_byte`."""
        for name, value in numbers(entry).items():
            self._writer.add_scalar(name, value, global_step=entry["step"])
        self._writer.flush()  # a kill then loses nothing that was logged

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class WandbObserver:
    """Logs to Weights & Biases, or, with WANDB_MODE=offline in the environment, to files for `wandb sync`.

    Args:
        directory: where its files and the run's identity are kept, so that a resumed training goes on in the same run.
        steps_done: of the checkpoint from which training goes on. Where there is none, and `configuration` is another
            than that of the run that is kept there, a new run is begun: it is another training.
        project: its project there.
        name: the run's; None leaves it to them.
        configuration: JSON, shown beside the run.

    Raises:
        ValueError: wandb is not installed, or `directory` holds another run's identity that cannot be read.
    """

    def __init__(
        self,
        directory: str | Path,
        project: str,
        name: str | None = None,
        configuration: Mapping[str, Any] | None = None,
        steps_done: int = 0,
    ) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ValueError("Weights & Biases is not installed: pip install 'echo-ska[wandb]'") from error
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "run.json"
        self._kept = _kept_run(self._path, configuration, steps_done)
        self._run: Any = wandb.init(
            project=project,
            name=name,
            id=self._kept["id"],
            resume="allow",
            dir=str(folder),
            config=None if configuration is None else dict(configuration),
        )

    def log(self, entry: dict[str, Any]) -> None:
        """Log an entry's numbers, but for steps that an earlier run has logged."""
        kind = EVALUATION if EVALUATION in entry else "step"
        if entry["step"] <= self._kept[kind]:
            return
        self._run.log(numbers(entry), step=entry["step"])
        self._kept[kind] = entry["step"]
        write_json(self._path, self._kept)

    def close(self) -> None:
        """End the run and wait until it is written."""
        self._run.finish()


class Observers:
    """Several observers in the place of one, all told of the MFU and the peak memory too.

    Args:
        observers: what to hand entries to.
        throughput: adds to those that have a speed; None adds nothing.
    """

    def __init__(self, observers: Sequence[_Observer], throughput: Throughput | None = None) -> None:
        self.observers = list(observers)
        self.throughput = throughput

    def log(self, entry: dict[str, Any]) -> None:
        """Hand on an entry of the training's log."""
        whole = entry if self.throughput is None else self.throughput.added_to(entry)
        for observer in self.observers:
            observer.log(whole)

    def close(self) -> None:
        """Close all."""
        for observer in self.observers:
            observer.close()


@contextmanager
def open_observers(
    directory: str | Path,
    *,
    tensorboard: bool = False,
    wandb_project: str | None = None,
    configuration: Mapping[str, Any] | None = None,
    throughput: Throughput | None = None,
) -> Iterator[Observers]:
    """Observers of the training that keeps its checkpoints in `directory`, closed at the end.

    With several processes, open them in the first one alone.

    Args:
        directory: the training's own; files go to its subfolders `tensorboard` and `wandb`.
        tensorboard: whether to write TensorBoard's files.
        wandb_project: whether, and under which project, to log to Weights & Biases.
        configuration: JSON, for Weights & Biases.
        throughput: see `Observers`.

    Raises:
        ValueError: a package that is asked for is not installed; nothing is open then.
    """
    folder = Path(directory)
    found = list_checkpoints(folder)
    steps_done = int(found[-1].name.removeprefix("step-")) if found else 0
    observers = Observers([], throughput)
    try:
        if tensorboard:
            observers.observers.append(TensorBoardObserver(folder / TENSORBOARD, steps_done))
        if wandb_project is not None:
            observers.observers.append(
                WandbObserver(folder / WANDB, wandb_project, folder.name, configuration, steps_done)
            )
        yield observers
    finally:
        observers.close()


def numbers(entry: Mapping[str, Any]) -> dict[str, float]:
    """An entry's finite numbers but `step`, by names for curves: `training/loss`, `evaluation/recall/64`."""
    found: dict[str, float] = {}
    for name, value in entry.items():
        if isinstance(value, Mapping):
            found |= _flat(value, name)
        elif name != "step":
            found |= _flat({name: value}, "training")
    return found


def _flat(values: Mapping[str, Any], prefix: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in values.items():
        path = f"{prefix}/{name}"
        if isinstance(value, Mapping):
            found |= _flat(value, path)
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            found[path] = float(value)
    return found


def _kept_run(path: Path, configuration: Mapping[str, Any] | None, steps_done: int) -> dict[str, Any]:
    """What `path` says of the run: its `id`, the last `step` and `evaluation` that it has logged, and `of`, a digest.

    At the first start it is made up and written, and so it is where a training of another configuration begins anew.
    """
    described = json.dumps(configuration, sort_keys=True, default=str).encode()
    new = {"id": secrets.token_hex(8), "step": 0, EVALUATION: 0, "of": hashlib.sha256(described).hexdigest()}
    if path.exists():
        try:
            read = json.loads(path.read_text(encoding="utf-8"))
            kept = {"id": str(read["id"]), "step": int(read["step"]), EVALUATION: int(read[EVALUATION])}
            kept["of"] = str(read.get("of", new["of"]))  # runs of before it was written
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} does not hold a run's id and step: delete it to log to a new run.") from error
        if steps_done > 0 or kept["of"] == new["of"]:
            return kept
    write_json(path, new)
    return new
