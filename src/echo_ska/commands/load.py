"""Models and tokenizers from folders, with one sentence for what a folder may lack."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase
from transformers.utils import logging

from echo_ska.models import EchoConfig, EchoForCausalLM
from echo_ska.models.loading import unreported
from echo_ska.models.own_code import OWN_CODE_IS_NOT_RUN, refusing_own_code
from echo_ska.models.shapes import OtherShapesError


def require_model_folder(folder: Path) -> None:
    """Raise ValueError, saying what to name instead, unless `folder` holds a model of ours."""
    if not folder.exists():
        raise ValueError(f"There is no folder {folder}: name one that `echo-ska train` or save_pretrained wrote.")
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file: name the folder of a model.")
    if not (folder / "config.json").is_file():
        inside = folder / "model"
        hint = f"name {inside}" if (inside / "config.json").is_file() else "it has no config.json"
        raise ValueError(f"{folder} is not the folder of a model: {hint}.")
    kind = _json_object(folder / "config.json", "a model").get("model_type")
    if kind is None:
        raise ValueError(f"{folder / 'config.json'} does not describe a model: it has no model_type.")
    if kind != EchoConfig.model_type:
        raise ValueError(f"{folder} holds a model of type {kind}, not {EchoConfig.model_type}.")


def load_model(folder: Path, device: str = "auto") -> EchoForCausalLM:
    """The model in `folder`, in the dtype it was saved in, ready to be asked.

    Args:
        folder: as `echo-ska train` or `save_pretrained` wrote it. Only safetensors are read.
        device: "cpu", "cuda", or "auto": the GPU if there is one.

    Raises:
        ValueError: `folder` holds no such model, one of its JSON files says what cannot be, its weights are missing,
            damaged or of another model, or there is no such device here.
    """
    require_model_folder(folder)
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be one of auto, cpu, cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("There is no GPU that torch can use: leave --device out, or take cpu.")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    logging.disable_progress_bar()
    _require_configurations(folder)
    try:
        with unreported():
            model, found = EchoForCausalLM.from_pretrained(
                folder, use_safetensors=True, output_loading_info=True, local_files_only=True
            )
    except OtherShapesError:
        raise
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"The weights in {folder} cannot be read: {_first_line(error)}.") from None
    if lacking := sorted(found["missing_keys"]):
        raise ValueError(f"The weights in {folder} are not all of this model: {lacking[0]} is missing.")
    require_known(found["unexpected_keys"], folder)
    return model.to(device).eval()


def require_known(unexpected: Iterable[str], folder: Path) -> None:
    """Refuse weights in `folder` that its config.json has no place for, by name; raises ValueError."""
    if unknown := sorted(unexpected):
        raise ValueError(
            f"The weights in {folder} do not fit its config.json: the model has no {unknown[0]}; put back the "
            "config.json that was saved with them."
        )


def load_tokenizer(folder: Path, vocab_size: int) -> PreTrainedTokenizerBase:
    """The tokenizer beside the model in `folder`.

    Args:
        folder: the model's.
        vocab_size: ids that the model knows.

    Raises:
        ValueError: there is none, it cannot be read, or it has ids that the model does not know.
    """
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(
            f"{folder} has no tokenizer (tokenizer.json): save the model's own there with "
            "tokenizer.save_pretrained(...); echo_ska.models.byte_tokenizer() is that of models that learnt bytes."
        )
    return read_tokenizer(folder, vocab_size)


def read_tokenizer(folder: Path, vocab_size: int) -> PreTrainedTokenizerBase:
    """The tokenizer in `folder`, of whatever files it is made; see `load_tokenizer`."""
    try:
        with refusing_own_code(folder):
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, **OWN_CODE_IS_NOT_RUN)
    except Exception as error:  # `tokenizers` raises bare Exceptions
        remedy = next(reversed(str(error).splitlines()), type(error).__name__).strip().rstrip(".")  # behind what failed
        raise ValueError(f"The tokenizer in {folder} cannot be read: {remedy}.") from None
    if tokenizer.get_vocab().keys() <= set(tokenizer.all_special_tokens):  # of a tokenizer_config.json alone
        raise ValueError(f"The tokenizer in {folder} has no vocabulary: save the model's own there.")
    if len(tokenizer) > vocab_size:
        raise ValueError(f"The tokenizer in {folder} has {len(tokenizer)} tokens, its model only {vocab_size}.")
    return tokenizer


def require_state(model: EchoForCausalLM, folder: Path) -> None:
    """Raise ValueError if a layer cannot go on from a state, so that nothing can be written token by token."""
    if not model.has_state:
        raise ValueError(f"A layer of the model in {folder} reads whole sequences and keeps no state: it cannot write.")


def _require_configurations(folder: Path) -> None:
    """Raise ValueError, naming the file, unless a model can be made of what its JSON files say: people edit them."""
    described: dict[str, tuple[Any, str]] = {
        "config.json": (EchoConfig, "a model"),
        "generation_config.json": (GenerationConfig, "how a model generates"),
    }
    for name, (kind, what) in described.items():
        path = folder / name
        if not path.is_file():
            continue
        _json_object(path, what)
        try:
            kind.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # of fields that it does not check, transformers raises whatever they lead to
            raise ValueError(f"{path} does not describe {what}: {_first_line(error)}.") from error


def _json_object(path: Path, what: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} does not describe {what}: it is not JSON ({_first_line(error)}).") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} does not describe {what}: it must be a JSON object.")
    return found


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
