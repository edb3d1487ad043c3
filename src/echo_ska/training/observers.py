"""Curves of a training in TensorBoard and Weights & Biases: observers, which are told every line of its log.

A run that was killed and resumed does some steps again. In its curves they stand once: TensorBoard is told to forget
the first ones, and Weights & Biases, which cannot, is not told the second ones (which are the same).
"""

from __future__ import annotations

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
    ) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ValueError("Weights & Biases is not installed: pip install 'echo-ska[wandb]'") from error
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "run.json"
        self._identity, self._known = _identity(self._path)
        self._run: Any = wandb.init(
            project=project,
            name=name,
            id=self._identity,
            resume="allow",
            dir=str(folder),
            config=None if configuration is None else dict(configuration),
        )

    def log(self, entry: dict[str, Any]) -> None:
        """Log an entry's numbers, but for steps that an earlier run has logged."""
        kind = EVALUATION if EVALUATION in entry else "step"
        if entry["step"] <= self._known[kind]:
            return
        self._run.log(numbers(entry), step=entry["step"])
        self._known[kind] = entry["step"]
        write_json(self._path, {"id": self._identity, **self._known})

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
                WandbObserver(folder / WANDB, wandb_project, name=folder.name, configuration=configuration)
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


def _identity(path: Path) -> tuple[str, dict[str, int]]:
    """The run's id, made up at its first start, and the last step that it has logged, and the last evaluation."""
    if not path.exists():
        identity, known = secrets.token_hex(8), {"step": 0, EVALUATION: 0}
        write_json(path, {"id": identity, **known})
        return identity, known
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return str(kept["id"]), {kind: int(kept[kind]) for kind in ("step", EVALUATION)}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not hold a run's id and step: delete it to log to a new run.") from error
