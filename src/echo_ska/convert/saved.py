"""Loading a model whose attention was replaced, with nothing missing."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from echo_ska.convert.classes import FIELD
from echo_ska.models.loading import unreported
from echo_ska.models.own_code import OWN_CODE_IS_NOT_RUN, refusing_own_code
from echo_ska.models.shapes import require_shapes


def load_converted(folder: str | Path, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """A model with SKA in the place of attention, from a folder that its `save_pretrained` wrote.

    `AutoModelForCausalLM.from_pretrained` loads it too, but only warns of weights that are missing.

    Args:
        folder: on this machine. Only safetensors and JSON are read.
        dtype: what the model is to run in (what steers solves stays in float32); None is the dtype it was saved in.

    Returns:
        The model in eval mode, on the CPU.

    Raises:
        ValueError: `folder` holds no such model, or weights that are missing, damaged or of another one.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is not the folder of a model: it has no config.json")
    with refusing_own_code(folder):
        try:
            config = AutoConfig.from_pretrained(folder, **OWN_CODE_IS_NOT_RUN)
        except (OSError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{folder / 'config.json'} does not describe a model: {_last_line(error)}") from None
    if not getattr(config, FIELD, None):
        raise ValueError(f"no attention was replaced in the model in {folder}: load it with AutoModelForCausalLM")
    try:
        with unreported():
            model, found = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below
                **({} if dtype is None else {"dtype": dtype}),
                **OWN_CODE_IS_NOT_RUN,
            )
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"the weights in {folder} cannot be read: {_last_line(error)}") from None
    except OSError as error:
        raise ValueError(f"weights are missing in {folder}: save the model again ({_last_line(error)})") from None
    require_shapes(model, found["mismatched_keys"], folder)
    if odd := sorted({*found["missing_keys"], *found["unexpected_keys"]}):
        raise ValueError(f"the weights in {folder} are not those of this model: {odd[0]} is missing or unknown")
    loaded: PreTrainedModel = model
    return loaded.eval()


def _last_line(error: Exception) -> str:
    return next(reversed(str(error).strip().splitlines()), type(error).__name__).strip()
