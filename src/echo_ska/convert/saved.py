"""Loading a model whose attention was replaced."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from echo_ska.convert.replace import FIELD, replace_attention
from echo_ska.models.own_code import OWN_CODE_IS_NOT_RUN, refusing_own_code


def load_converted(folder: str | Path) -> PreTrainedModel:
    """A model with SKA in the place of attention, from a folder that its `save_pretrained` wrote.

    `AutoModelForCausalLM.from_pretrained` cannot load it, because it would build softmax attention. Only safetensors
    and JSON are read.

    Args:
        folder: on this machine.

    Returns:
        The model in eval mode, on the CPU, each parameter in the dtype it was saved in.

    Raises:
        ValueError: `folder` holds no such model, or weights that are missing, damaged or of another one.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is not the folder of a model: it has no config.json")
    with refusing_own_code(folder):
        config = AutoConfig.from_pretrained(folder, **OWN_CODE_IS_NOT_RUN)
    replaced = getattr(config, FIELD, None)
    if not replaced:
        raise ValueError(f"no attention was replaced in the model in {folder}: load it with AutoModelForCausalLM")
    weights = _weights(folder)
    delattr(config, FIELD)  # written anew as the layers are replaced again
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    for part in replaced:
        replace_attention(model, part["layers"], init="fresh", rank=part["rank"], **part["settings"])
    tied = set(model.all_tied_weights_keys)
    try:
        found = model.load_state_dict(weights, strict=False, assign=True)
    except RuntimeError as error:
        raise ValueError(f"the weights in {folder} are not of this model: {_last_line(error)}") from None
    if odd := [*(set(found.missing_keys) - tied), *found.unexpected_keys]:
        raise ValueError(f"the weights in {folder} are not those of this model: {sorted(odd)[0]} is missing or unknown")
    model.tie_weights()
    return model.eval()


def _weights(folder: Path) -> dict[str, Tensor]:
    names = ["model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    weights: dict[str, Tensor] = {}
    for name in names:
        try:
            weights |= load_file(folder / name)
        except FileNotFoundError:
            raise ValueError(f"{folder / name} is missing: save the model again") from None
        except SafetensorError as error:
            raise ValueError(f"the weights in {folder / name} cannot be read: {_last_line(error)}") from None
    return weights


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()
