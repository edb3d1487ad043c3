"""Whether a checkpoint is of the training that is asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from echo_ska.sealed import sole_folder
from echo_ska.training.checkpoint import Checkpoint, compare_configurations, list_checkpoints, read_checkpoint
from echo_ska.training.config import TrainingConfig
from echo_ska.training.optimizer import parameter_groups
from echo_ska.training.processes import Processes

BOOKKEEPING = {
    *(f"training.{name}" for name in ("log_every", "evaluate_every", "checkpoint_every", "keep_checkpoints")),
    # `save_pretrained` writes these two into the configuration of the very model that it saves; `restore` holds every
    # tensor to its dtype.
    "model.architectures",
    "model.dtype",
}
"""What may change between a checkpoint and its resumption, for it does not touch the weights."""


class OtherSettingsError(ValueError):
    """A checkpoint is of another training than the one that is asked for.

    Attributes:
        differing: the value that was recorded and the one that is asked for, by the dotted names of what differs.
    """

    def __init__(self, path: Path, differing: dict[str, tuple[Any, Any]]) -> None:
        super().__init__(
            f"{path} was trained with another {', another '.join(differing)}: use the same settings to resume it, or "
            "train in another directory."
        )
        self.differing = differing


@contextmanager
def held_folder(directory: Path) -> Iterator[None]:
    """Hold the folder of a run, which is made, against every other holder.

    Raises:
        ValueError: another training holds it.
        OSError: it cannot be made.
    """
    directory.mkdir(parents=True, exist_ok=True)
    busy = f"another process is training in {directory}: wait for its end, or train in another directory."
    with sole_folder(directory, busy):
        yield


@contextmanager
def own_folder(directory: Path | None, processes: Processes) -> Iterator[None]:
    """Hold the folder of a run, which is made, for these processes alone; the first holds it, None holds nothing.

    Raises:
        ValueError: in all processes, if another training holds it.
        OSError: in all processes, if it cannot be made.
    """
    with ExitStack() as held:

        def hold() -> None:
            if directory is not None:
                held.enter_context(held_folder(directory))

        processes.on_first(hold)
        yield


def require_json(configuration: dict[str, Any]) -> None:
    """Raise ValueError where a part of a configuration is no JSON, which checkpoints and records are."""
    for part, settings in configuration.items():
        try:
            json.dumps(settings)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"What describes the {part} is no JSON ({error}): let its describe() return strings, numbers, lists "
                "and dictionaries alone."
            ) from None


def describe_optimizer(model: nn.Module, config: TrainingConfig) -> dict[str, Any]:
    """Which of the model's parameters are trained, and how unlike the others; see `parameter_groups`."""
    groups = parameter_groups(model, 1.0, config.weight_decay)
    rates = [[name, group["lr"]] for group in groups for name in group["parameter_names"]]
    return {
        "trained_parameters": sorted(name for name, _ in rates),
        "learning_rate_scales": sorted(rate for rate in rates if rate[1] != 1.0),
        "decayed_parameters": sorted(name for g in groups if g["weight_decay"] for name in g["parameter_names"]),
    }


def checkpoint_to_resume(directory: Path, configuration: dict[str, Any], resume: bool) -> Checkpoint | None:
    """The newest checkpoint in `directory`, None where there is none.

    Args:
        directory: where checkpoints are kept.
        configuration: what is asked for. A part of it that checkpoints of earlier versions lack is passed over.
        resume: whether there may be one.

    Raises:
        OtherSettingsError: it is of another configuration.
        ValueError: it is damaged; or there is one and `resume` is False.
    """
    found = list_checkpoints(directory)
    if not found:
        return None
    if not resume:
        raise ValueError(f"{directory} already holds checkpoints: resume, or train in another directory.")
    checkpoint = read_checkpoint(found[-1])
    asked = {part: settings for part, settings in configuration.items() if part in checkpoint.configuration}
    compared = compare_configurations(checkpoint.configuration, asked)
    if differing := {name: values for name, values in compared.items() if name not in BOOKKEEPING}:
        raise OtherSettingsError(checkpoint.path, differing)
    return checkpoint


def describe_model(model: nn.Module) -> dict[str, Any]:
    """The model's class, its Hugging Face configuration without what is not of the function, and its `describe()`.

    The last two where it has them.
    """
    config: Any = getattr(model, "config", None)
    settings = config.to_dict() if hasattr(config, "to_dict") else {}
    passing = {"transformers_version", "_name_or_path", "use_cache", *getattr(config, "unread_fields", ())}
    describe: Any = getattr(model, "describe", None)
    own: dict[str, Any] = describe() if callable(describe) else {}
    return {"class": type(model).__name__, **{key: settings[key] for key in settings if key not in passing}, **own}
