"""Checkpoints that are whole or absent: written beside, flushed to disk, then renamed. Nothing is pickled.

    directory/checkpoints/step-000500/
        model.safetensors       every parameter and persistent buffer, each storage once
        optimizer.safetensors   AdamW's moments and step counts, by "<parameter name>/<slot>"
        trainer.json            format, step, configuration, and what the loop carries from step to step
        SHA256SUMS              of the three files, as `sha256sum -c` reads it

Processes that share a model write one shard each instead of the two tensor files: see `stored`. Either kind is resumed
by any number of processes. There is no random state in them: everything random in a step follows from (seed, step).
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from echo_ska.sealed import PARTIAL, SUMS, broken_sum, flush, storable, write_sums
from echo_ska.training.processes import Processes
from echo_ska.training.stored import (
    MODEL,
    OPTIMIZER,
    SHARDS,
    TRAINER,
    Piece,
    Stored,
    StoredTensors,
    checkpoint_files,
    describe_pieces,
    open_tensors,
    shard_name,
)

FORMAT = 1


class Checkpoint(NamedTuple):
    """A checkpoint that was read: `step` steps were done, and `state` is what the loop carries."""

    path: Path
    step: int
    configuration: dict[str, Any]
    state: dict[str, Any]


def list_checkpoints(directory: Path) -> list[Path]:
    """The folders of complete checkpoints under `directory`, oldest first."""
    found = [path for path in (directory / "checkpoints").glob("step-*") if path.name[5:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[5:]))


def save_checkpoint(
    directory: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    configuration: dict[str, Any],
    state: dict[str, Any],
    keep: int,
) -> Path:
    """Write the checkpoint after `step` steps and delete all but the newest `keep`.

    A process killed at any moment leaves the earlier checkpoints and at most a partial folder, which
    `remove_partial` deletes. `configuration` and `state` must be JSON.

    Raises:
        OSError: if it cannot be written (a full disk, say); earlier checkpoints are untouched.
    """
    final, partial = _folders(directory, step)
    with _one_sentence(final), _whole(partial):
        partial.mkdir(parents=True)
        save_file(storable(model_tensors(model)), partial / MODEL)
        save_file(storable(_optimizer_tensors(model, optimizer)), partial / OPTIMIZER)
        _seal(partial, final, [MODEL, OPTIMIZER], step, configuration, state)
    _prune(directory, keep)
    return final


def save_shards(
    directory: Path,
    step: int,
    pieces: Sequence[Piece],
    configuration: dict[str, Any],
    state: dict[str, Any],
    keep: int,
    processes: Processes,
) -> None:
    """As `save_checkpoint`, called by all processes: each writes its `pieces`, the first all else.

    Together they hold every number of the model and the optimiser once. The folder must be one that all see.

    Raises:
        OSError: in all processes, if one cannot write.
    """
    final, partial = _folders(directory, step)
    name = shard_name(processes.rank, processes.size)

    def begin() -> None:
        with _one_sentence(final):
            partial.mkdir(parents=True)

    def write() -> None:
        with _one_sentence(final):
            save_file(storable({f"{piece.kind}/{piece.name}": piece.values for piece in pieces}), partial / name)
            flush(partial / name)

    def finish() -> None:
        with _one_sentence(final), _whole(partial):
            (partial / SHARDS).write_text(json.dumps(describe_pieces(described)) + "\n", encoding="utf-8")
            _seal(partial, final, checkpoint_files(partial)[:-1], step, configuration, state)
        _prune(directory, keep)

    processes.on_first(begin)
    with _whole(partial) if processes.first else contextlib.nullcontext():  # after all have come to an end
        processes.together(write)
    described = processes.gather(
        [(*piece[:3], str(piece.values.dtype)[6:], piece.start, piece.start + piece.values.numel()) for piece in pieces]
    )
    processes.on_first(finish)


def remove_partial(directory: Path) -> None:
    """Delete what a killed run left half written or half deleted."""
    for path in (directory / "checkpoints").glob(PARTIAL + "*/"):
        shutil.rmtree(path)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint's `trainer.json` after verifying the checksums of all its files.

    Raises:
        ValueError: one sentence, if a file is missing or damaged or the format is another.
    """
    try:
        if (broken := broken_sum(path, checkpoint_files(path))) is not None:
            raise _damaged(path / broken, "its contents do not match its checksum")
        trainer = json.loads((path / TRAINER).read_text(encoding="utf-8"))
    except OSError as error:
        raise _damaged(Path(error.filename or path), f"it cannot be read, {error.strerror}") from error
    if trainer["format"] != FORMAT:
        raise ValueError(
            f"The checkpoint {path} has format {trainer['format']} and this version of echo-ska reads format "
            f"{FORMAT}: resume with the version that wrote it, or train in another directory."
        )
    return Checkpoint(path, trainer["step"], trainer["configuration"], trainer["state"])


def restore(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> StoredTensors:
    """Copy a checkpoint's tensors into a model and its optimiser, in place.

    Args:
        checkpoint: what `read_checkpoint` returned.
        model: whose weights are overwritten.
        optimizer: of all the model's parameters; None leaves the moments to the caller, who finds them in what is
            returned.

    Raises:
        ValueError: if names, shapes or dtypes differ from the model's; nothing is changed then.
    """
    targets, saved = model_tensors(model), open_tensors(checkpoint.path)
    names = targets.keys() | saved.model.keys()
    if differing := [name for name in names if not _alike(targets.get(name), saved.model.get(name))]:
        raise ValueError(
            f"The checkpoint {checkpoint.path} is of another model: {_some(differing)} differ in name, shape or dtype."
        )
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(saved.model[name].whole())
    if optimizer is not None:
        parameters = dict(model.named_parameters())
        optimizer.state.clear()
        for key, stored in saved.optimizer.items():
            name, _, slot = key.rpartition("/")
            parameter = parameters[name]
            optimizer.state[parameter][slot] = stored.whole().to(parameter.device)
    return saved


def compare_configurations(recorded: dict[str, Any], asked: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted names of the fields whose values differ, sorted, with both; None stands for one that is missing."""
    first, second = _flatten(recorded), _flatten(json.loads(json.dumps(asked)))
    missing = object()
    names = sorted(first.keys() | second.keys())
    return {
        name: (first.get(name), second.get(name))
        for name in names
        if first.get(name, missing) != second.get(name, missing)
    }


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for name, inner in value.items():
        flat |= _flatten(inner, f"{prefix}.{name}" if prefix else name)
    return flat


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The model's parameters and persistent buffers; tied ones appear once, under their first name."""
    unique: dict[tuple[Any, ...], tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict().items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else (name,)
        unique.setdefault(place, (name, tensor))
    return dict(unique.values())


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}/{slot}": value
        for name, parameter in model.named_parameters()
        for slot, value in optimizer.state.get(parameter, {}).items()
    }


def _alike(target: Tensor | None, saved: Stored | None) -> bool:
    if target is None or saved is None:
        return False
    return (tuple(target.shape), target.dtype) == (saved.shape, saved.dtype)


def _folders(directory: Path, step: int) -> tuple[Path, Path]:
    """The checkpoint's folder, and the one that it is written in."""
    final = directory / "checkpoints" / f"step-{step:06d}"
    return final, final.with_name(PARTIAL + final.name)


@contextlib.contextmanager
def _one_sentence(final: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"The checkpoint {final} could not be written: {error}; make room, or see that the folder can be written "
            "to, and start the training again, which goes on from the checkpoint before."
        ) from error


@contextlib.contextmanager
def _whole(partial: Path) -> Iterator[None]:
    """Delete what was written where something cannot be: on a full disk it would take the room for the next one."""
    try:
        yield
    except (OSError, SafetensorError):
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _seal(
    partial: Path, final: Path, tensors: list[str], step: int, configuration: dict[str, Any], state: dict[str, Any]
) -> None:
    """Add what is not tensors, flush everything, and give the folder its name."""
    trainer = {"format": FORMAT, "step": step, "configuration": configuration, "state": state}
    (partial / TRAINER).write_text(json.dumps(trainer, indent=2) + "\n", encoding="utf-8")
    write_sums(partial, [*tensors, TRAINER])
    for name in (*tensors, TRAINER, SUMS):
        flush(partial / name)
    flush(partial)
    partial.rename(final)
    flush(final.parent)


def _prune(directory: Path, keep: int) -> None:
    for path in list_checkpoints(directory)[:-keep]:
        # Renamed first, so that a kill while deleting leaves no half checkpoint under a checkpoint's name.
        shutil.rmtree(path.rename(path.with_name(PARTIAL + path.name)))


def _damaged(path: Path, what: str) -> ValueError:
    return ValueError(
        f"The checkpoint file {path} is damaged ({what}): delete the folder {path.parent} to resume from the "
        "checkpoint before it, or train in another directory."
    )


def _some(names: list[str]) -> str:
    return ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
